//! Claims: which blocks of a manifest are here already, as an earlier session with another one left them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use noxu_log::LogError;
use noxu_log::env::Env;
use noxu_log::segment::name::parse_segment_name;

use super::super::bitmap::Bitmap;
use super::super::manifest::{BITMAP, Manifest, hint};
use crate::error::Result;

/// The bitmap for `manifest`, which is saved.
pub(super) fn open_bitmap(env: &dyn Env, dir: &Path, manifest: &Manifest) -> Result<Bitmap> {
    let path = dir.join(BITMAP);
    let old = hint(Manifest::load(env, dir))?;
    let blocks = manifest.blocks();
    if old.as_ref().is_some_and(|old| old.segments_id() == manifest.segments_id()) {
        manifest.save(env, dir)?;
        return Bitmap::open(env, &path, manifest.segments_id(), blocks);
    }
    let (id, count) = match &old {
        Some(old) => (old.segments_id(), old.blocks()),
        None => (manifest.segments_id(), blocks),
    };
    let mut bitmap = Bitmap::open(env, &path, id, count)?;
    let mut had = HashMap::new();
    let mut first_block = 0;
    for segment in old.iter().flat_map(|old| &old.segments) {
        let count = segment.blocks.len() as u32;
        let claimed: HashSet<u32> =
            (0..count).filter(|block| bitmap.has(first_block + block)).collect();
        had.insert((segment.number, segment.digest), claimed);
        first_block += count;
    }
    // Before the manifest: whoever finds that finds no claims but these.
    bitmap.begin_anew(manifest.segments_id(), blocks);
    let mut first_block = 0;
    for segment in &manifest.segments {
        for block in had.get(&(segment.number, segment.digest)).into_iter().flatten() {
            bitmap.set(first_block + block, true);
        }
        first_block += segment.blocks.len() as u32;
    }
    bitmap.save()?;
    let offered: HashSet<u32> = manifest.segments.iter().map(|offer| offer.number).collect();
    for name in env.list(dir).map_err(|e| LogError::io("list", dir, e))? {
        if parse_segment_name(&name).is_some_and(|number| !offered.contains(&number)) {
            let path = dir.join(name);
            env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
        }
    }
    manifest.save(env, dir)?;
    Ok(bitmap)
}
