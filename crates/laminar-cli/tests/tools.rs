//! The tools on the state of a small job, and what the command says when it is used wrongly.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::io::Read;
use std::process::Stdio;

use laminar_storage::incremental::IncrementalCheckpointMetadata;
use support::Desk;

fn small_job() -> Desk {
    let desk = Desk::new();
    desk.write(
        "a.csv",
        "who,amount,note\nann,1.50,\"x, y\"\nbob,2,\"a\nb\"\nann,0.25,z\ncid,-7,\"q \"\"q\"\"\"\n",
    );
    desk.ok(&[
        "run",
        "a.csv",
        "--key",
        "who",
        "--agg",
        "count,sum:amount",
        "--agg",
        "max:amount,last:note",
        "--cores",
        "2",
    ]);
    desk
}

#[test]
fn get_top_scan_and_export_agree() {
    let desk = small_job();
    let ann = "{\"key\":\"ann\",\"count\":2,\"sum:amount\":1.75,\"max:amount\":1.50,\"last:note\":\"z\"}\n";
    let bob = "{\"key\":\"bob\",\"count\":1,\"sum:amount\":2,\"max:amount\":2,\"last:note\":\"a\\nb\"}\n";
    let cid =
        "{\"key\":\"cid\",\"count\":1,\"sum:amount\":-7,\"max:amount\":-7,\"last:note\":\"q \\\"q\\\"\"}\n";
    assert_eq!(desk.ok(&["get", "ann", "--json"]), ann);
    assert_eq!(desk.ok(&["export"]), [ann, bob, cid].concat());
    assert_eq!(desk.ok(&["scan", "--json", "--prefix", "b"]), bob);
    assert_eq!(desk.ok(&["scan", "--json", "--limit", "1"]), ann);
    assert_eq!(desk.ok(&["top", "2", "--json", "--by", "sum:amount"]), [bob, ann].concat());
    assert_eq!(desk.ok(&["top", "--json"]), [ann, bob, cid].concat());
    desk.ok(&["export", "--format", "csv", "--output", "x.csv"]);
    assert_eq!(
        desk.read("x.csv"),
        "key,count,sum:amount,max:amount,last:note\nann,2,1.75,1.50,z\nbob,1,2,2,\"a\nb\"\ncid,1,-7,-7,\"q \"\"q\"\"\"\n"
    );
    desk.ok(&["export", "-o", "y.CSV"]);
    assert_eq!(desk.read("y.CSV"), desk.read("x.csv"));
    desk.ok(&["export", "-o", "z.csv", "--format", "ndjson"]);
    assert_eq!(desk.read("z.csv"), [ann, bob, cid].concat());
    assert!(desk.ok(&["get", "cid"]).contains("sum:amount"));
    assert!(desk.ok(&["scan", "--raw", "--json"]).starts_with("{\"key_hex\":\"616e6e\",\"value"));
}

#[test]
fn info_and_verify_show_a_healthy_store() {
    let desk = small_job();
    let info = desk.json(&["info", "--json"]);
    assert_eq!(info["recovery"]["keys"], 3);
    assert_eq!(info["job"]["key"], "who");
    assert!(info["checkpoints"].as_array().is_some_and(|c| !c.is_empty()));
    assert!(info["segments"].as_array().is_some_and(|s| s.len() >= 2));
    assert!(desk.ok(&["info"]).contains("recovery point"));
    let verified = desk.json(&["verify", "--json"]);
    assert_eq!(verified["ok"], true, "{verified}");
    assert!(desk.ok(&["verify"]).contains("ok       recovery"));
}

/// Every checksum is right and the state is wrong: which core, and in which epochs, is what whoever looks for the reason
/// wants to know.
#[test]
fn verify_names_core_and_epochs_of_a_wrong_digest() {
    let desk = small_job();
    let files = support::files_below(&desk.path("laminar-state/checkpoints"));
    let manifest = files.iter().rfind(|path| path.ends_with("metadata.json")).unwrap();
    let text = std::fs::read_to_string(manifest).unwrap();
    let mut metadata = IncrementalCheckpointMetadata::from_json(&text).unwrap();
    metadata.digests[1].digest ^= 1;
    std::fs::write(manifest, metadata.to_json().unwrap()).unwrap();
    let ran = desk.run(&["verify"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let line =
        |check: &str| ran.out.lines().find(|line| line.starts_with(check)).unwrap_or_default().to_owned();
    let epoch = format!("epoch {}", metadata.epoch);
    for part in ["core 1", "digest", epoch.as_str()] {
        assert!(line("DAMAGED  recovery").contains(part), "{part} in {}", ran.out);
        assert!(line("DAMAGED  checkpoint").contains(part), "{part} in {}", ran.out);
    }
    assert!(line("DAMAGED  recovery").contains(&format!("after {epoch}")), "{}", ran.out);
}

/// What refuses to open is just what somebody looks at: `info` showed nothing but the error.
#[test]
fn info_shows_the_parts_of_a_state_that_does_not_open() {
    let desk = small_job();
    let logs = support::files_below(&desk.path("laminar-state/wal"));
    let log = logs.iter().rfind(|path| path.extension().is_some_and(|e| e == "log")).unwrap();
    let mut bytes = std::fs::read(log).unwrap();
    bytes[40] ^= 1;
    std::fs::write(log, bytes).unwrap();
    let ran = desk.run(&["info"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    for part in ["by who", "recovery would", "refuse: ", "checkpoint", "log: "] {
        assert!(ran.out.contains(part), "{part} in {}", ran.out);
    }
    let ran = desk.run(&["info", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert!(told["recovery"]["error"].is_string() && told["segments"]["error"].is_string(), "{told}");
    assert!(told["checkpoints"].as_array().is_some_and(|c| !c.is_empty()), "{told}");
}

#[test]
fn wrong_usage_is_told_with_code_2() {
    let desk = small_job();
    for (args, wanted) in [
        (&["run"][..], "FILE"),
        (&["run", "a.csv", "--key", "who", "--agg", "avg:x"], "is not an aggregate"),
        (&["run", "a.csv", "--on-error", "panic"], "dead-letter"),
        (&["run", "-", "--key", "who"], "standard input"),
        (&["run", "a.csv", "--state", "s2"], "--key is missing"),
        (&["run", "nothing-*.csv", "--state", "s2", "--key", "k"], "no file matches"),
        (&["run", ".", "--state", "s2", "--key", "k", "--format", "csv"], "is a directory"),
        (&["run", "a.csv", "--epoch", "soon"], "--epoch"),
        (&["run", "a.csv", "--format", "words", "--agg", "sum:x", "--state", "s2"], "words have none"),
        (&["top", "--by", "sum:x"], "can be ordered by: count, sum:amount, max:amount"),
        (&["top", "--by", "last:note"], "no order"),
        (&["top", "0"], "invalid value '0'"),
        (&["frobnicate"], "unrecognized"),
    ] {
        let told = desk.fails(2, args);
        assert!(told.contains(wanted), "{args:?}: {told}");
    }
    assert!(!desk.path("s2").exists(), "a refused command makes nothing");
}

#[test]
fn failures_are_told_with_code_1() {
    let desk = small_job();
    desk.write("bad.ndjson", "{\"k\":1}\n{\"k\":}\n");
    std::fs::create_dir(desk.path("photos")).unwrap();
    desk.write("photos/cat.jpg", "meow");
    for (args, wanted) in [
        (&["get", "zoe"][..], "has no key \"zoe\""),
        (&["export", "--state", "nowhere"], "no store"),
        (&["top", "--state", "nowhere"], "no store"),
        (&["info", "--state", "nowhere"], "no store"),
        (&["verify", "--state", "nowhere"], "no store"),
        (&["run", "missing.csv", "--key", "k", "--state", "s3"], "missing.csv"),
        (&["run", "a.csv", "--key", "note"], "belongs to another job: --key was `who`, now it is `note`"),
        (&["run", "a.csv", "--key", "nope", "--state", "s4"], "no column `nope`"),
        (
            &["run", "bad.ndjson", "--key", "k", "--state", "s5"],
            "bad.ndjson: line 2 (byte 8): not a JSON object",
        ),
        (&["run", "a.csv", "--key", "who", "--state", "photos"], "cat.jpg"),
    ] {
        let told = desk.fails(1, args);
        assert!(told.contains(wanted), "{args:?}: {told}");
    }
    desk.write("a.csv", "who,amount,note\n");
    let told =
        desk.fails(1, &["run", "a.csv", "--key", "who", "--agg", "count,sum:amount,max:amount,last:note"]);
    assert!(told.contains("truncated"), "{told}");
}

#[test]
fn the_output_is_never_written_over_the_job() {
    let desk = small_job();
    let before = desk.read("a.csv");
    let job = desk.read("laminar-state/job.json");
    for (args, wanted) in [
        (&["run", "a.csv", "--key", "who", "--state", "s2", "-o", "./a.csv"][..], "is the input file"),
        (&["run", "*.csv", "--key", "who", "--state", "s2", "-o", "out.csv"], "matches the input pattern"),
        (&["run", "a.csv", "--key", "who", "--state", "s2", "-o", "s2/x"], "does not exist"),
        (&["export", "--output", "a.csv"], "is the input file"),
        (&["export", "--output", "laminar-state/job.json"], "inside the state directory"),
    ] {
        let told = desk.fails(2, args);
        assert!(told.contains(wanted), "{args:?}: {told}");
    }
    assert!(!desk.path("s2").exists() && !desk.path("out.csv").exists());
    assert_eq!((desk.read("a.csv"), desk.read("laminar-state/job.json")), (before, job));
}

/// A mistyped first command used to keep the state it left behind.
#[test]
fn a_state_without_any_record_belongs_to_the_next_command() {
    let desk = Desk::new();
    desk.write("e.ndjson", "{\"k\":1}\n");
    desk.fails(1, &["run", "e.ndjson", "--key", "oops"]);
    let ran = desk.run(&["run", "e.ndjson", "--key", "k", "--cores", "1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("--key was `oops`") && ran.err.contains("belongs to this command now"),
        "{}",
        ran.err
    );
    assert_eq!(desk.ok(&["export"]), "{\"key\":\"1\",\"count\":1}\n");
    let again = desk.json(&["run", "e.ndjson", "--key", "k", "--cores", "2", "--json"]);
    assert_eq!((&again["run"]["records"], &again["total"]["records"]), (&0.into(), &1.into()));
    let told = desk.fails(1, &["run", "e.ndjson", "--key", "oops"]);
    assert!(told.contains("belongs to another job"), "{told}");
}

/// What the README tells a newcomer to do.
#[test]
fn a_generated_file_gives_its_truth() {
    let desk = Desk::new();
    for (file, more) in [("e.ndjson", &[][..]), ("z.ndjson", &["--zipf"]), ("c.csv", &["--seed", "7"])] {
        let args = ["generate", file, "--events", "20000", "--keys", "1500", "--truth", "truth"];
        let told = desk.ok(&[&args[..], &["--force"], more].concat());
        assert!(told.contains("laminar run") && told.contains("cmp"), "{told}");
        let keys = desk.read("truth").lines().count();
        assert!(if more == ["--zipf"] { keys < 1500 } else { keys == 1500 }, "{file}: {keys} keys");
        let state = format!("state-{file}");
        let run = ["run", file, "--key", "user.id", "--agg", "count,sum:amount", "--state", &state, "--json"];
        assert_eq!(desk.json(&run)["total"]["records"], 20_000);
        assert_eq!(desk.ok(&["export", "--state", &state]), desk.read("truth"), "{file}");
    }
    let before = desk.read("e.ndjson");
    for (args, wanted) in [
        (&["generate", "e.ndjson"][..], "exists already"),
        (&["generate", "new", "--truth", "e.ndjson"], "exists already"),
        (&["generate", "new", "--truth", "new"], "one file"),
        (&["generate", ".", "--force"], "no regular file"),
        (&["generate", "new", "--keys", "0"], "--keys"),
    ] {
        let told = desk.fails(2, args);
        assert!(told.contains(wanted), "{args:?}: {told}");
    }
    assert!(desk.read("e.ndjson") == before && !desk.path("new").exists());
    let told = desk.fails(1, &["generate", "no/such/place"]);
    assert!(told.contains("no/such/place"), "{told}");
}

#[test]
fn help_teaches() {
    let desk = Desk::new();
    assert!(desk.ok(&["--help"]).contains("Exit codes"));
    let help = desk.ok(&["run", "--help"]);
    assert!(help.contains("--on-error dead-letter bad.ndjson") && help.contains("same bytes"), "{help}");
    for tool in ["get", "top", "scan", "export", "info", "verify", "generate", "demo"] {
        assert!(desk.ok(&[tool, "--help"]).contains("--"), "{tool}");
    }
}

#[test]
fn a_reader_that_stops_reading_is_not_an_error() {
    let desk = Desk::new();
    desk.write("e.ndjson", &support::events(60_000, 50_000));
    desk.ok(&["run", "e.ndjson", "--key", "user.id", "--quiet"]);
    let mut child = desk.command(&["export"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut start = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

/// What recovery can do without is checked all the same.
#[test]
fn verify_checks_the_job_and_the_small_files_of_the_log() {
    let desk = small_job();
    desk.ok(&["run", "a.csv", "--key", "note", "--state", "other"]);
    let is_damaged = |name: &str, wanted: &str| {
        let ran = desk.run(&["verify"]);
        assert_eq!(ran.code, Some(1), "{name} {wanted}: {}", ran.out);
        assert!(ran.out.contains(&format!("DAMAGED  {name}: ")) && ran.out.contains(wanted), "{}", ran.out);
    };
    for name in ["job.json", "wal/CURRENT", "wal/CLOSED", "wal/SYNCED"] {
        let path = desk.path("laminar-state").join(name);
        let whole = std::fs::read(&path).unwrap();
        let check = name.rsplit('/').next().unwrap();
        for bad in [&whole[..whole.len() - 1], &b""[..], &vec![0; whole.len()]] {
            std::fs::write(&path, bad).unwrap();
            if check == "SYNCED" && bad.len() == whole.len() {
                // Its slots are written in place, and a power cut may tear one.
                assert!(desk.ok(&["verify"]).contains("the others prove nothing"));
                continue;
            }
            is_damaged(check, "damaged");
        }
        std::fs::remove_file(&path).unwrap();
        if !matches!(check, "CLOSED" | "SYNCED") {
            is_damaged(check, "is missing");
        }
        std::fs::write(&path, &whole).unwrap();
        desk.ok(&["verify"]);
    }
    // A job that reads another file, and has read nothing of it.
    let job = desk.path("laminar-state/job.json");
    let whole = std::fs::read(&job).unwrap();
    desk.write("empty.csv", "");
    desk.run(&["run", "empty.csv", "--key", "who", "--state", "none", "--format", "csv"]);
    std::fs::copy(desk.path("none/job.json"), &job).unwrap();
    is_damaged("job.json", "does not belong to this state");
    std::fs::write(&job, &whole).unwrap();
    // CURRENT of the opening before.
    let current = desk.path("laminar-state/wal/CURRENT");
    let old = std::fs::read(&current).unwrap();
    desk.write("a.csv", &(desk.read("a.csv") + "dan,1,n\n"));
    desk.ok(&["run", "a.csv", "--key", "who", "--agg", "count,sum:amount,max:amount,last:note"]);
    desk.ok(&["verify"]);
    std::fs::write(&current, old).unwrap();
    is_damaged("CURRENT", "older copy");
}

#[test]
fn damage_is_found_and_named() {
    let desk = small_job();
    let files: Vec<_> = support::files_below(&desk.path("laminar-state"));
    let job = files.iter().find(|f| f.ends_with("job.json")).unwrap();
    let text = std::fs::read(job).unwrap();
    std::fs::write(job, &text[..text.len() - 2]).unwrap();
    for args in [&["export"][..], &["verify"], &["run", "a.csv", "--key", "who"]] {
        let ran = desk.run(args);
        assert_eq!(ran.code, Some(1), "{args:?}");
        assert!((ran.out + &ran.err).contains("job.json"), "{args:?}");
    }
    std::fs::write(job, &text).unwrap();
    let sst = files.iter().find(|f| f.extension().is_some_and(|e| e == "sst")).unwrap();
    let mut bytes = std::fs::read(sst).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(sst, bytes).unwrap();
    let ran = desk.run(&["verify"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.out.contains("DAMAGED  checkpoint") && ran.err.contains("checks failed"),
        "{}{}",
        ran.out,
        ran.err
    );
    let ran = desk.run(&[
        "run",
        "a.csv",
        "--key",
        "who",
        "--agg",
        "count,sum:amount,max:amount,last:note",
        "--json",
    ]);
    assert!(ran.code != Some(0) || ran.err.contains("damaged checkpoint"), "{}{}", ran.out, ran.err);
}

/// With the job.json of a job over the same input, whose aggregates stood in another order, every
/// command showed the smallest amounts as the largest, and `verify` found nothing.
#[test]
fn the_job_of_another_state_is_refused_by_every_command() {
    let desk = Desk::new();
    desk.write("a.csv", "k,v\na,1\na,9\n");
    let run = |state, agg| ["run", "a.csv", "--key", "k", "--agg", agg, "--state", state];
    desk.ok(&run("laminar-state", "min:v,max:v"));
    desk.ok(&run("other", "max:v,min:v"));
    let before = desk.ok(&["export"]);
    let job = desk.path("laminar-state/job.json");
    let own = std::fs::read(&job).unwrap();
    std::fs::copy(desk.path("other/job.json"), &job).unwrap();
    let reading = [&["get", "a"][..], &["top"], &["scan"], &["export"], &["info"]];
    for args in reading.into_iter().chain([&run("laminar-state", "max:v,min:v")[..]]) {
        let told = desk.fails(1, args);
        assert!(told.contains("job.json does not belong to this state"), "{args:?}: {told}");
        assert!(told.contains("--raw"), "{args:?}: {told}");
    }
    let ran = desk.run(&["verify"]);
    assert!(ran.code == Some(1) && ran.out.contains("DAMAGED  job.json: "), "{}", ran.out);
    desk.ok(&["export", "--raw"]);
    std::fs::write(&job, own).unwrap();
    desk.ok(&["verify"]);
    assert_eq!(desk.ok(&["export"]), before);
}

/// Without job.json the values came out as hexadecimal, and the exit code was 0.
#[test]
fn without_its_job_only_raw_shows_a_state() {
    let desk = small_job();
    std::fs::remove_file(desk.path("laminar-state/job.json")).unwrap();
    for args in [&["get", "ann"][..], &["top"], &["scan"], &["export"], &["info"]] {
        let told = desk.fails(1, args);
        assert!(told.contains("job.json is missing") && told.contains("--raw"), "{args:?}: {told}");
    }
    assert!(desk.ok(&["export", "--raw"]).starts_with("{\"key_hex\":\"616e6e\",\"value_hex\""));
}

/// To open a named pipe is to wait for whoever writes to it: the command hung, and neither Ctrl-C nor SIGTERM
/// ended it.
#[test]
fn a_named_pipe_is_refused_and_not_waited_for() {
    let desk = Desk::new();
    let made = std::process::Command::new("mkfifo").arg(desk.path("pipe")).status().unwrap();
    assert!(made.success());
    for args in [&["--key", "k", "--format", "ndjson"][..], &["--key", "k"], &["--format", "words"]] {
        let told = desk.fails(2, &[&["run", "pipe"], args].concat());
        assert!(told.contains("not a regular file"), "{args:?}: {told}");
    }
}
