//! Arguments of the commands.

/// Values of `--flags`, in any order.
pub struct Flags<'a>(&'a [String]);

impl<'a> Flags<'a> {
    /// Those of `known`; the ones ending in `=` have a value.
    ///
    /// # Errors
    /// A flag that is not known, with the `usage`; a value that is missing.
    pub fn parse(arguments: &'a [String], known: &[&str], usage: &str) -> Result<Self, String> {
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            if known.contains(&format!("{flag}=").as_str()) {
                rest.next().ok_or(format!("{flag} needs a value"))?;
            } else if !known.contains(&flag.as_str()) {
                return Err(format!("{flag} is not known here; usage:\n{usage}"));
            }
        }
        Ok(Self(arguments))
    }

    /// Whether the flag is there.
    #[must_use]
    pub fn is_set(&self, flag: &str) -> bool {
        self.0.iter().any(|argument| argument == flag)
    }

    /// Its value, if it is there.
    #[must_use]
    pub fn text(&self, flag: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|argument| argument == flag)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// Its value as a number, or `default`.
    ///
    /// # Errors
    /// A value that is no number.
    pub fn number(&self, flag: &str, default: u64) -> Result<u64, String> {
        self.text(flag).map_or(Ok(default), |text| text.parse().map_err(|e| format!("{flag} {text}: {e}")))
    }

    /// As many threads as `--threads` says, or as there are processors.
    ///
    /// # Errors
    /// A value that is no number.
    pub fn threads(&self) -> Result<usize, String> {
        let all = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        usize::try_from(self.number("--threads", all)?).map_err(|e| e.to_string())
    }
}
