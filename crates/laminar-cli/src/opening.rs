//! The bar that is seen while a state is opened, when that takes a while.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use laminar_storage::{RecoveryPhase, RecoveryProgress};

/// Openings that are done before this are not worth a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Does somebody watch how a state is opened?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    Yes,
    No,
}

impl Watched {
    /// A person at a terminal, who did not ask for JSON.
    pub fn unless(json: bool) -> Self {
        if !json && std::io::stderr().is_terminal() { Self::Yes } else { Self::No }
    }
}

/// Draws on standard error what the store tells, and is gone when it is dropped.
pub fn bar() -> impl FnMut(RecoveryProgress) + Send + 'static {
    let mut shown = Shown(None);
    move |progress| shown.update(&progress)
}

struct Shown(Option<ProgressBar>);

impl Shown {
    fn update(&mut self, progress: &RecoveryProgress) {
        if progress.phase == RecoveryPhase::Done {
            *self = Self(None);
            return;
        }
        if progress.elapsed < PATIENCE {
            return;
        }
        let bar = self.0.get_or_insert_with(ProgressBar::no_length);
        if bar.length() != progress.bytes_total {
            let template = match progress.bytes_total {
                Some(_) => "{bar:28.cyan/blue} {percent:>3}%  {msg}",
                None => "{spinner}  {msg}",
            };
            // The templates are constants; a mistake in one would only cost its looks.
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            match progress.bytes_total {
                Some(total) => bar.set_length(total),
                None => bar.unset_length(),
            }
        }
        bar.set_message(text(progress));
        bar.set_position(progress.bytes_done);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn text(progress: &RecoveryProgress) -> String {
    let doing = match progress.phase {
        RecoveryPhase::Surveying => "checking the log",
        RecoveryPhase::Resharding => "distributing the keys anew",
        RecoveryPhase::Replaying => "replaying the log",
        _ => "loading the checkpoint",
    };
    let mut text = format!("{doing}: {}", HumanBytes(progress.bytes_done));
    if let Some(total) = progress.bytes_total {
        text += &format!(" of {}", HumanBytes(total));
    }
    if progress.keys > 0 {
        text += &format!(", {} keys", HumanCount(progress.keys));
    }
    text += &format!(", {}/s", HumanBytes(progress.bytes_per_second));
    if let Some(remaining) = progress.remaining {
        text += &format!(", {:.0} s left", remaining.as_secs_f64().ceil());
    }
    text
}

#[cfg(test)]
mod tests {
    use laminar_storage::Store;

    use super::*;

    /// What the store really tells, of an opening that is long over before anybody would want a bar.
    #[test]
    fn a_quick_opening_shows_nothing_and_a_slow_one_says_what_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let mut shown = Shown(None);
        let listener = move |progress| {
            shown.update(&progress);
            told.send((progress, shown.0.is_some())).unwrap();
        };
        let opened = Store::builder(dir.path()).on_progress(listener).open().unwrap();
        opened.store.close().unwrap();
        let (mut progress, visible) = heard.iter().last().unwrap();
        assert_eq!((progress.phase, visible), (RecoveryPhase::Done, false));

        progress.phase = RecoveryPhase::Loading;
        (progress.bytes_done, progress.bytes_total) = (1 << 20, Some(4 << 20));
        (progress.keys, progress.bytes_per_second) = (12_345, 2 << 20);
        progress.remaining = Some(Duration::from_millis(1500));
        let wanted = "loading the checkpoint: 1.00 MiB of 4.00 MiB, 12,345 keys, 2.00 MiB/s, 2 s left";
        assert_eq!(text(&progress), wanted);
        progress.phase = RecoveryPhase::Surveying;
        (progress.bytes_total, progress.remaining, progress.keys) = (None, None, 0);
        assert_eq!(text(&progress), "checking the log: 1.00 MiB, 2.00 MiB/s");

        let mut shown = Shown(None);
        progress.elapsed = PATIENCE - Duration::from_millis(1);
        shown.update(&progress);
        assert!(shown.0.is_none());
        progress.elapsed = PATIENCE;
        shown.update(&progress);
        assert!(shown.0.is_some());
        progress.phase = RecoveryPhase::Done;
        shown.update(&progress);
        assert!(shown.0.is_none());
    }
}
