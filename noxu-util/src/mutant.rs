//! Mutant: the switch of a crate's deliberate bugs, which tests must notice.
//!
//! # Not here: what the bugs are, and who may switch them on (each crate's own mutant.rs).

/// Defines the enum of a crate's deliberate bugs, with `ALL` of them, so that a test can ask of each
/// by what it is found.
#[macro_export]
macro_rules! mutants {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }
    ) => {
        $(#[$meta])*
        $vis enum $name { $($(#[$doc])* $variant,)+ }

        #[cfg(any(test, feature = "mutants"))]
        impl $name {
            /// Each of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
        }
    };
}

/// Gives the enum `$mutant` of a crate its switch: `is_on(mutant)` for the code that has the bug,
/// `$mutant::with(mutant, act)` for the test. A switch is one thread's; other threads stay sane.
#[macro_export]
macro_rules! mutant_switch {
    ($mutant:ident) => {
        ::std::thread_local! {
            static ON: ::std::cell::Cell<Option<$mutant>> =
                const { ::std::cell::Cell::new(None) };
        }

        /// Whether `mutant` is switched on in this thread.
        pub(crate) fn is_on(mutant: $mutant) -> bool {
            ON.get() == Some(mutant)
        }

        /// Switches back when it is dropped.
        struct Before(Option<$mutant>);

        impl Drop for Before {
            fn drop(&mut self) {
                ON.set(self.0);
            }
        }

        impl $mutant {
            /// Runs `act` with this bug, or with none, in what the calling thread does; other
            /// threads stay sane.
            pub fn with<T>(mutant: Option<Self>, act: impl FnOnce() -> T) -> T {
                let _before = Before(ON.replace(mutant));
                act()
            }
        }
    };
}
