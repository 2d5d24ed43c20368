//! Every measurement that is over within seconds is made once, with a state that is as small as it gets: that all of the
//! tables and plots come out, and that their figures can be true. No figure here says anything about speed, so none is
//! compared with a time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value};
use tempfile::TempDir;

const KEYS: u64 = 2000;
/// Bytes of a key and its value.
const PAYLOAD: f64 = 116.0;
/// Memory of so few keys, in their bytes, is mostly replaced records that wait for Ring 1: how many, time decides.
const MOST_MEMORY: f64 = 100.0;

const QUICK: &str = "ring0,turns,scaling,lifecycle,checkpoint,recovery,peers,stalls,space";

/// Names of tables in the order in which they are measured, each with the number of its rows where nothing but the
/// measurement decides about it.
const TABLES: &[(&str, Option<usize>)] = &[
    ("calibration", Some(1)),
    ("ring0", None),
    ("memory", Some(3)),
    ("growth", Some(3)),
    ("turns", None),
    ("scaling", Some(11)),
    ("scaling_states", Some(3)),
    ("scaling_cores", Some(4)),
    ("lifecycle", None),
    ("reopened", Some(1)),
    ("checkpoint", None),
    ("recovery", None),
    ("peer-checkpoints", None),
    ("peer-openings", None),
    ("stalls", None),
    ("stalls-checkpoints", None),
    ("stalls-commits", None),
    ("space", Some(2)),
];

/// Plots, and names that are in them.
const PLOTS: &[(&str, &[&str])] = &[
    ("ring0-latency", &["put, uniform, sealed every 10 ms", "get, uniform", "update, uniform"]),
    ("growth-latency", &["insert, sealed every 10 ms", "hashbrown, insert"]),
    ("scaling-keys", &["put", "get", "get_batch", "hashbrown, overwrite", "keys", "2000", "4000", "8000"]),
    ("scaling-keys-durable", &["put, until durable"]),
    ("scaling-keys-rare", &["put, p99.9"]),
    ("scaling-keys-memory", &["memory used", "memory of hashbrown"]),
    ("scaling-lengths", &["put", "get", "bytes of a key", "8", "16", "32", "64"]),
    ("scaling-lengths-durable", &["put, until durable"]),
    ("scaling-lengths-rare", &["put, p99.9"]),
    ("scaling-lengths-memory", &["memory used", "memory of hashbrown"]),
    ("scaling-values", &["put", "get", "bytes of a value", "8", "100", "250", "500", "750", "1000"]),
    ("scaling-values-durable", &["put, until durable"]),
    ("scaling-values-rare", &["put, p99.9"]),
    ("scaling-values-memory", &["memory used", "memory of hashbrown"]),
    ("scaling-states", &["first checkpoint", "1 % changed, checkpoint", "opening"]),
    ("scaling-cores", &["first checkpoint", "opening", "cores", "1", "2", "4", "8"]),
    ("space-skewed", &["newest checkpoint", "with the log"]),
    ("written-skewed", &["changed", "written by checkpoints"]),
];

/// What a run left beside its figures.
struct Measured {
    dir: TempDir,
    figures: Value,
}

impl Measured {
    /// Runs the program, which must find no difference and leave none of its own files behind.
    fn new(parts: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (json, data) = (dir.path().join("figures.json"), dir.path().join("data"));
        let keys = KEYS.to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_laminar-bench"))
            .args(["--quick", "--keys", &keys, "--ops", "4000", "--dir"])
            .arg(&data)
            .arg("--json")
            .arg(&json)
            .args(["all", "--only", parts])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read_dir(data).unwrap().count(), 0, "files of the run are left");
        let figures: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        assert_eq!(figures["differences"], 0);
        Self { dir, figures }
    }

    fn tables(&self) -> &[Value] {
        self.figures["tables"].as_array().unwrap()
    }

    fn table(&self, id: &str) -> Table<'_> {
        let table = self.tables().iter().find(|table| table["id"] == id);
        Table { id: id.into(), table: table.unwrap_or_else(|| panic!("no table {id}")) }
    }

    fn all(&self) -> impl Iterator<Item = Table<'_>> {
        self.tables().iter().map(|table| self.table(table["id"].as_str().unwrap()))
    }
}

struct Table<'a> {
    id: String,
    table: &'a Value,
}

impl<'a> Table<'a> {
    fn rows(&self) -> Vec<Row<'a>> {
        let rows = self.table["rows"].as_array().unwrap();
        rows.iter().map(|row| Row(row.as_object().unwrap())).collect()
    }

    /// The figures of a column, of the rows that have one.
    fn column(&self, name: &str) -> Vec<f64> {
        let column: Vec<_> = self.rows().iter().filter_map(|row| row.figure(name)).collect();
        assert!(!column.is_empty(), "{}: no row has {name}", self.id);
        column
    }

    fn has_note(&self, part: &str) {
        let notes = self.table["not_equal"].as_array().unwrap();
        assert!(notes.iter().any(|note| note.as_str().unwrap().contains(part)), "{}: {part}", self.id);
    }
}

struct Row<'a>(&'a Map<String, Value>);

impl Row<'_> {
    /// The figure of a column, whatever its unit.
    fn figure(&self, column: &str) -> Option<f64> {
        let names = ["", " (ns)", " (bytes)"].map(|unit| format!("{column}{unit}"));
        names.iter().find_map(|name| self.0.get(name)?.as_f64())
    }
}

fn assert_ascending(table: &Table<'_>, columns: &[&str]) {
    for row in table.rows() {
        let figures: Vec<_> = columns.iter().filter_map(|column| row.figure(column)).collect();
        assert!(figures.is_sorted(), "{}: {:?}", table.id, row.0);
    }
}

fn assert_within(table: &Table<'_>, column: &str, least: f64, most: f64) {
    for figure in table.column(column) {
        assert!((least..=most).contains(&figure), "{}: {column} is {figure}", table.id);
    }
}

/// What holds for any table: it has rows and figures, of which none is negative. What is not a number at all would have
/// become nothing.
fn assert_plausible(measured: &Measured) {
    for table in measured.all() {
        let rows = table.rows();
        let figures: Vec<_> = rows.iter().flat_map(|row| row.0.values().filter_map(Value::as_f64)).collect();
        assert!(!figures.is_empty(), "{} has no figures", table.id);
        assert!(figures.iter().all(|n| n.is_finite() && *n >= 0.0), "{}: {figures:?}", table.id);
    }
}

#[test]
fn every_quick_measurement_has_its_tables_and_plots() {
    let measured = Measured::new(QUICK);
    assert_plausible(&measured);
    for (id, rows) in TABLES {
        let found = measured.table(id).rows().len();
        assert!(rows.is_none_or(|rows| rows == found), "{id} has {found} rows");
    }
    operations(&measured);
    scaling(&measured);
    checkpoints(&measured);
    for (name, wanted) in PLOTS {
        assert_drawn(&measured.dir.path().join(format!("{name}.svg")), wanted);
    }
}

fn operations(measured: &Measured) {
    for id in ["ring0", "growth", "stalls"] {
        assert_ascending(&measured.table(id), &["p50", "p99", "p99.9", "p99.99", "longest"]);
    }
    assert_ascending(&measured.table("turns"), &["mean: least", "mean: median round", "mean: most"]);
    let memory = measured.table("memory");
    assert_eq!(memory.column("keys"), [KEYS as f64, KEYS as f64, 0.0]);
    assert_within(&memory, "/ (key + value + 24 B)", 1.0, MOST_MEMORY);
}

fn scaling(measured: &Measured) {
    for id in ["scaling", "scaling_states", "scaling_cores"] {
        let table = measured.table(id);
        table.has_note("model of ");
        // Whatever these rows have is measured in each.
        for row in table.rows() {
            assert!(!row.0.values().any(Value::is_null), "{id}: {:?}", row.0);
        }
    }
    let scaling = measured.table("scaling");
    for column in ["put", "put, p99.9", "put, until durable", "get", "get_batch"] {
        assert_within(&scaling, column, f64::MIN_POSITIVE, f64::MAX);
    }
    assert_within(&scaling, "/ (key + value + 24 B)", 1.0, MOST_MEMORY);
    assert_within(&scaling, "the same, hashbrown", 0.5, 3.0);
    let states = measured.table("scaling_states").column("keys and values");
    assert_eq!(states, [1.0, 2.0, 4.0].map(|times| times * KEYS as f64 * PAYLOAD));
    assert_eq!(measured.table("scaling_cores").column("cores"), [1.0, 2.0, 4.0, 8.0]);
}

fn checkpoints(measured: &Measured) {
    // A first checkpoint has every key and value, with little about them.
    let first = measured.table("checkpoint").column("bytes / changed")[0];
    assert!((1.0..1.5).contains(&first), "{first}");
    assert_within(&measured.table("recovery"), "cores", 1.0, 8.0);
    assert_within(&measured.table("reopened"), "different", 0.0, 0.0);
    assert_within(&measured.table("space"), "newest / live, most", 1.0, 3.0);
}

fn assert_drawn(plot: &Path, wanted: &[&str]) {
    let svg = fs::read_to_string(plot).unwrap_or_else(|e| panic!("{}: {e}", plot.display()));
    assert!(svg.starts_with("<svg") && svg.contains("<polyline"), "{}", plot.display());
    for wanted in wanted {
        // The model of a line goes on behind its name.
        let names = svg.lines().any(|line| line == *wanted || line.starts_with(&format!("{wanted}:")));
        assert!(names, "{} has nothing of the name {wanted}", plot.display());
    }
}

/// `durable` fills logs of eight cores whatever the number of keys, and rests before each turn; `objective` kills again and
/// again.
#[test]
#[ignore = "takes minutes"]
fn every_slow_measurement_has_its_tables_and_plots() {
    let measured = Measured::new("durable,objective");
    assert_plausible(&measured);
    let rates = measured.table("durable");
    // Of puts that are not sealed one by one some are replaced before they are logged, and none is logged twice.
    assert_within(&rates, "logged / put", 0.0, 1.01);
    assert_within(&rates, "cores", 1.0, 8.0);
    assert_within(&rates, "puts / sync", 0.0, f64::MAX);
    let latency = measured.table("seal_to_durable");
    assert_ascending(&latency, &["p50", "p99", "p99.9", "longest"]);
    assert_within(&latency, "cores", 1.0, 8.0);
    let plots: [(&str, &[&str]); 2] = [
        ("durable-cores", &["uniform, 1024 puts per seal, segments used again", "1", "2", "4", "8"]),
        ("durable-until-cores", &["1024 puts per core", "raw, as many bytes as 1024 puts per core", "8"]),
    ];
    for (name, wanted) in plots {
        assert_drawn(&measured.dir.path().join(format!("{name}.svg")), wanted);
    }
}
