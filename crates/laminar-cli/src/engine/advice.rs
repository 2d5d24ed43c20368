//! The library's advice in the words of the command: its errors tell a programmer what to call, and a
//! user of the command has other means.

/// What the library says, and what to say instead.
const INSTEAD: &[(&str, &str)] = &[
    (
        "or read what is left with PerCoreWalReader. Nothing was changed.",
        "or start over with a new --state directory. Nothing was changed; `laminar verify` lists all that is damaged.",
    ),
    (
        "to look at it meanwhile use StateReader.",
        "to look at it meanwhile use `laminar info`, `get`, `top`, `scan` or `export`.",
    ),
    (
        "Read the state with StateReader and put it into a new store;",
        "Write the state out with `laminar export`, and start over with a new --state directory;",
    ),
    ("Store::builder().cores(n) can change it.", "`laminar run --cores N` can change it."),
    (
        "Raise settings.state_limit_bytes or use more cores;",
        "Use more --cores, so that each has less to hold;",
    ),
    (
        ", allow more address space (`ulimit -v`) or set a lower settings.state_limit_bytes;",
        " or allow more address space (`ulimit -v`);",
    ),
    ("Try again shortly, or use put, which waits;", "Run the same command again;"),
    ("Use a newer version of laminar-storage;", "Use a newer version of laminar;"),
    (
        "Open it with the version of laminar-storage that wrote it.",
        "Use the version of laminar that wrote it.",
    ),
    ("Check the path, or create the log with PerCoreWalManager::new.", "Check the path."),
];

/// An error text of the library for a user of the command.
pub fn for_user(text: &str) -> String {
    INSTEAD.iter().fold(text.to_owned(), |text, (said, instead)| text.replace(said, instead))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The text of all remedies in the library's sources, with continued lines joined.
    fn remedies(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                remedies(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                for part in source.split("remedy(").skip(1) {
                    let Some(text) = part.trim_start().strip_prefix('"') else { continue };
                    let text = text.split("\")").next().unwrap().split("\",").next().unwrap();
                    let joined: Vec<&str> = text.split("\\\n").map(str::trim_start).collect();
                    found.push(joined.concat());
                }
            }
        }
    }

    #[test]
    fn no_remedy_of_the_library_names_its_functions() {
        let mut found = Vec::new();
        remedies(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../laminar-storage/src"), &mut found);
        assert!(found.len() > 40, "{}", found.len());
        for (said, _) in INSTEAD {
            assert!(
                found.iter().any(|text| text.contains(said)),
                "the library does not say this any more: {said}"
            );
        }
        for text in found {
            let told = for_user(&text);
            for word in ["Reader", "Manager", "Store::", "builder", "settings.", "laminar-storage", "use put"]
            {
                assert!(!told.contains(word), "of no use to a user of the command: {told}");
            }
        }
    }
}
