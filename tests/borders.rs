//! The border rules of ARCHITECTURE.md, checked over the sources and the manifests.
//!
//! Comments are not looked at: a comment may name what the code below it must not. A rule that
//! finds fewer files than it expects fails, so that a renamed folder cannot switch it off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder and the words its sources must not contain.
struct Rule {
    /// Number under which ARCHITECTURE.md states it.
    id: &'static str,
    /// Folder or file, from the repository root.
    scope: &'static str,
    /// Files below it that the rule leaves alone.
    except: &'static [&'static str],
    /// Words or paths, matched as whole identifiers.
    forbidden: &'static [&'static str],
    /// Fewer source files than this and the rule looks at the wrong place.
    least_files: usize,
}

const RULES: &[Rule] = &[
    Rule {
        id: "B1",
        scope: "noxu-rep/src/core",
        except: &[],
        forbidden: &[
            "std::net",
            "std::fs",
            "std::thread",
            "Instant::now",
            "SystemTime::now",
            "fastrand::u64",
            "fastrand::f64",
            "random()",
            "HashMap",
            "HashSet",
            "Log",
            "ControlFile",
            "TailMark",
            "SealedSegment",
            "EnvFile",
            "parking_lot",
            "crossbeam_channel",
            "crate::net",
            "crate::driver",
            "crate::stream",
            "crate::node",
        ],
        least_files: 5,
    },
    Rule {
        id: "B2",
        scope: "noxu-log/src",
        except: &[],
        forbidden: &[
            "noxu_rep",
            "noxu_kv",
            "lsm_tree",
            "std::net",
            "socket2",
            "Channel",
            "Peer",
            "Quorum",
            "Transaction",
            "Replica",
            "Feeder",
            "Durability",
            "AckPolicy",
        ],
        least_files: 8,
    },
    Rule {
        id: "B3",
        scope: "noxu-rep/src",
        except: &[],
        forbidden: &["noxu_kv", "lsm_tree", "Store", "clap", "redis_protocol"],
        least_files: 10,
    },
    Rule {
        id: "B4",
        scope: "noxu-rep/src/wire",
        except: &[],
        forbidden: &[
            "ControlState",
            "ControlFile",
            "TailMark",
            "SegmentHeader",
            "TruncateIntent",
            "noxu_log::segment",
            "noxu_log::control_file",
            "noxu_log::env",
            "std::fs",
            "std::net",
        ],
        least_files: 3,
    },
    Rule {
        id: "B5",
        scope: "noxu-kv/src",
        except: &[],
        forbidden: &[
            "std::net",
            "noxu_rep::net",
            "noxu_rep::wire",
            "noxu_rep::core",
            "noxu_rep::stream",
        ],
        least_files: 1,
    },
    Rule {
        id: "B6",
        scope: "noxu-util/src",
        except: &[],
        forbidden: &["std::net", "std::fs", "std::thread", "Instant", "SystemTime", "std::io"],
        least_files: 5,
    },
    Rule {
        id: "B7",
        scope: "src/door",
        except: &[],
        forbidden: &["noxu_log", "lsm_tree", "noxu_rep::net", "noxu_rep::wire", "noxu_rep::core"],
        least_files: 5,
    },
    Rule {
        id: "B10",
        scope: "noxu-sim/src",
        except: &["noxu-sim/src/baton.rs", "noxu-sim/src/main.rs"],
        forbidden: &[
            "std::net",
            "std::fs",
            "std::thread",
            "Instant",
            "SystemTime",
            "HashMap",
            "HashSet",
            "fastrand::u64",
            "fastrand::f64",
            "random()",
        ],
        least_files: 10,
    },
];

/// Which Noxu crates each crate may depend on (rule B8).
const DIRECTION: &[(&str, &str, &[&str])] = &[
    ("noxu-util", "noxu-util/Cargo.toml", &[]),
    ("noxu-log", "noxu-log/Cargo.toml", &["noxu-util"]),
    ("noxu-rep", "noxu-rep/Cargo.toml", &["noxu-util", "noxu-log"]),
    ("noxu-kv", "noxu-kv/Cargo.toml", &["noxu-util", "noxu-log", "noxu-rep"]),
    ("noxu-sim", "noxu-sim/Cargo.toml", &["noxu-util", "noxu-log", "noxu-rep", "noxu-kv"]),
    ("noxu", "Cargo.toml", &["noxu-util", "noxu-log", "noxu-rep", "noxu-kv"]),
];

/// Packages of asynchronous runtimes (rule B9).
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "async-executor"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources_below(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let mut children: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        children.sort();
        for child in children {
            sources_below(&child, found);
        }
    } else if path.extension().is_some_and(|ext| ext == "rs") {
        found.push(path.to_owned());
    }
}

/// The source without its comments; line numbers stay. Strings are left alone unless they hold
/// `//`, which cuts the line: at worst a violation behind a URL on the same line is missed.
fn without_comments(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut block_depth = 0_usize;
    for line in source.lines() {
        let mut rest = line;
        while !rest.is_empty() {
            if block_depth > 0 {
                match (rest.find("/*"), rest.find("*/")) {
                    (Some(open), close) if close.is_none_or(|close| open < close) => {
                        block_depth += 1;
                        rest = &rest[open + 2..];
                    }
                    (_, Some(close)) => {
                        block_depth -= 1;
                        rest = &rest[close + 2..];
                    }
                    _ => rest = "",
                }
                continue;
            }
            let line_comment = rest.find("//").unwrap_or(rest.len());
            if let Some(open) = rest[..line_comment].find("/*") {
                out.push_str(&rest[..open]);
                block_depth = 1;
                rest = &rest[open + 2..];
            } else {
                out.push_str(&rest[..line_comment]);
                rest = "";
            }
        }
        out.push('\n');
    }
    out
}

/// Lines of `source` that contain `word` as a whole identifier or path.
fn lines_with(source: &str, word: &str) -> Vec<usize> {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut lines = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let hit = line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
        });
        if hit {
            lines.push(number + 1);
        }
    }
    lines
}

fn violations(rule: &Rule, file: &str, source: &str) -> Vec<String> {
    let code = without_comments(source);
    let mut found = Vec::new();
    for word in rule.forbidden {
        for line in lines_with(&code, word) {
            found.push(format!("{}: {file}:{line} names {word}", rule.id));
        }
    }
    found
}

/// Names under `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let table: toml::Table = manifest.parse().expect("a manifest is TOML");
    let mut names = BTreeSet::new();
    if let Some(toml::Value::Table(dependencies)) = table.get("dependencies") {
        names.extend(dependencies.keys().cloned());
    }
    names
}

fn forbidden_dependencies(krate: &str, manifest: &str, allowed: &[&str]) -> Vec<String> {
    dependencies(manifest)
        .into_iter()
        .filter(|name| name.starts_with("noxu") && !allowed.contains(&name.as_str()))
        .map(|name| format!("B8: {krate} depends on {name}"))
        .collect()
}

fn runtimes_in(lock: &str) -> Vec<String> {
    lock.lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .filter(|name| RUNTIMES.contains(name))
        .map(|name| format!("B9: {name} is in Cargo.lock"))
        .collect()
}

#[test]
fn no_source_file_names_what_its_side_of_a_border_must_not_know() {
    let mut found = Vec::new();
    for rule in RULES {
        let mut files = Vec::new();
        let scope = root().join(rule.scope);
        if scope.exists() {
            sources_below(&scope, &mut files);
        }
        assert!(
            files.len() >= rule.least_files,
            "{} looked at {} files below {}, expected at least {}",
            rule.id,
            files.len(),
            rule.scope,
            rule.least_files
        );
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            let shown = file.strip_prefix(root()).unwrap().display().to_string();
            if rule.except.contains(&shown.as_str()) {
                continue;
            }
            found.extend(violations(rule, &shown, &source));
        }
    }
    assert!(found.is_empty(), "border rules broken:\n{}", found.join("\n"));
}

#[test]
fn crates_depend_in_one_direction_only() {
    let mut found = Vec::new();
    let mut edges = 0;
    for (krate, path, allowed) in DIRECTION {
        let manifest = fs::read_to_string(root().join(path)).unwrap();
        assert!(manifest.contains(&format!("name = \"{krate}\"")), "{path} is not {krate}");
        edges += dependencies(&manifest).iter().filter(|name| name.starts_with("noxu")).count();
        found.extend(forbidden_dependencies(krate, &manifest, allowed));
    }
    assert!(edges >= 6, "only {edges} edges between our crates seen: the manifests were misread");
    assert!(found.is_empty(), "{}", found.join("\n"));

    let workspace: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    for member in members {
        let member = member.as_str().unwrap();
        assert!(
            DIRECTION.iter().any(|(krate, ..)| *krate == member),
            "workspace member {member} has no place in the dependency direction"
        );
    }
}

#[test]
fn no_asynchronous_runtime_is_in_the_dependency_tree() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    assert!(lock.contains("name = \"noxu-util\""), "not the lock file of this workspace");
    assert_eq!(runtimes_in(&lock), Vec::<String>::new());
}

#[test]
fn architecture_md_states_exactly_the_rules_that_are_checked() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut stated = BTreeMap::new();
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("- **").and_then(|rest| rest.split("**").next())
            && id.strip_prefix('B').is_some_and(|number| number.parse::<u8>().is_ok())
        {
            stated.insert(id.to_owned(), line.to_owned());
        }
    }
    let mut checked: BTreeSet<String> = RULES.iter().map(|rule| rule.id.to_owned()).collect();
    checked.extend(["B8".to_owned(), "B9".to_owned()]);
    assert_eq!(stated.keys().cloned().collect::<BTreeSet<_>>(), checked);
}

#[test]
fn a_made_up_violation_of_each_rule_is_found() {
    for rule in RULES {
        for word in rule.forbidden {
            let source = format!("fn lawful() {{}}\nuse {word};\n");
            assert_eq!(
                violations(rule, "made/up.rs", &source),
                [format!("{}: made/up.rs:2 names {word}", rule.id)]
            );
        }
    }
    let manifest = "[package]\nname = \"noxu-log\"\n[dependencies]\nnoxu-rep.workspace = true\nbytes = \"1\"\n";
    assert_eq!(
        forbidden_dependencies("noxu-log", manifest, &["noxu-util"]),
        ["B8: noxu-log depends on noxu-rep"]
    );
    assert_eq!(
        runtimes_in("[[package]]\nname = \"tokio\"\nversion = \"1.0.0\"\n"),
        ["B9: tokio is in Cargo.lock"]
    );
}

#[test]
fn comments_and_longer_names_are_no_violations() {
    let rule = &RULES[0];
    let source = "// std::net is not used here\n/* nor std::fs\n nor HashMap */ let a = 1; // HashMap\n\
                  let catalog = Logbook::new(); /* x */ let c = MyHashMap;\n";
    assert_eq!(violations(rule, "a.rs", source), Vec::<String>::new());
    let hidden = "/* a /* nested */ HashMap */ HashMap::new();\n";
    assert_eq!(violations(rule, "a.rs", hidden), ["B1: a.rs:1 names HashMap"]);
}

#[test]
fn dependencies_md_lists_exactly_the_direct_dependencies_of_the_workspace() {
    let text = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let listed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    let mut used = BTreeSet::new();
    for (_, path, _) in DIRECTION {
        let manifest: toml::Table = fs::read_to_string(root().join(path)).unwrap().parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            if let Some(toml::Value::Table(names)) = manifest.get(section) {
                used.extend(names.keys().filter(|name| !name.starts_with("noxu")).cloned());
            }
        }
    }
    assert!(used.len() > 10, "the manifests were misread: {used:?}");
    assert_eq!(listed, used);
}
