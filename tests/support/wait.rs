//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// How long a condition may take to come true, and a command to end. Far beyond what either needs: it only keeps a
/// broken test from hanging.
pub(crate) const BOUND: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(5);

/// Asks `condition` until it has an answer.
///
/// # Panics
/// With `what` when it has none within two minutes.
#[track_caller]
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + BOUND;
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {} s in vain: {what}", BOUND.as_secs());
        std::thread::sleep(PAUSE);
    }
}
