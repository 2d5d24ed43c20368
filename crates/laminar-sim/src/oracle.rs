//! What a store must hold after recovery: exactly one sealed epoch, not older than what was
//! acknowledged, and nothing else.
//!
//! The model knows nothing of files. It keeps, for every epoch that a core has sealed, the complete
//! state of that core as it was then; recovery at epoch R must give the state that every core had
//! when it sealed R.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use laminar_storage::ids::{CoreId, Epoch};

/// Every complaint of a judge has one of these words; no error of the library has any. So a run in which things
/// fail on purpose may be refused, and may not be told apart from one that lost something.
const VERDICTS: [&str; 3] = ["LOST: ", "PHANTOM: ", "WRONG: "];

/// Whether an error is a judge's complaint, not a refusal of the library.
#[must_use]
pub fn is_verdict(error: &str) -> bool {
    VERDICTS.iter().any(|word| error.contains(word))
}

/// Keys and values of one core.
pub type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// What one core holds: keys and values, source offsets, watermark.
pub type CoreView = (State, BTreeMap<String, u64>, Option<i64>);

/// One core at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct View {
    state: State,
    offsets: BTreeMap<String, u64>,
    watermark: Option<i64>,
}

#[derive(Clone, Debug, Hash)]
struct Core {
    now: Arc<View>,
    /// The epoch that changes go to.
    open: Epoch,
    sealed: BTreeMap<Epoch, Arc<View>>,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The epoch it landed on.
    pub epoch: Epoch,
    /// Keys and values per core. When there are more or fewer cores than the model has (the store
    /// was opened with another number), only the union is compared.
    pub state: Vec<State>,
    /// Source offsets of all cores together; of the same name the largest.
    pub offsets: BTreeMap<String, u64>,
    /// The smallest watermark of the cores that have one.
    pub watermark: Option<i64>,
}

/// The expected state of a store.
#[derive(Clone, Debug, Hash)]
pub struct Model {
    cores: Vec<Core>,
    acked: Epoch,
    /// Savepoints that were returned, and those of them whose fork acknowledged a change.
    saved: BTreeSet<u8>,
    forked: BTreeSet<u8>,
}

impl Model {
    /// An empty store; its first epoch is 1.
    #[must_use]
    pub fn new(cores: u16) -> Self {
        let core = Core {
            now: Arc::default(),
            open: Epoch(1),
            sealed: BTreeMap::from([(Epoch::ZERO, Arc::default())]),
        };
        let cores = vec![core; usize::from(cores)];
        Self { cores, acked: Epoch::ZERO, saved: BTreeSet::new(), forked: BTreeSet::new() }
    }

    fn core(&mut self, core: CoreId) -> &mut Core {
        &mut self.cores[usize::from(core.get())]
    }

    fn now(&mut self, core: CoreId) -> &mut View {
        Arc::make_mut(&mut self.core(core).now)
    }

    /// A key gets a value.
    pub fn put(&mut self, core: CoreId, key: &[u8], value: &[u8]) {
        self.now(core).state.insert(key.to_vec(), value.to_vec());
    }

    /// A key goes.
    pub fn delete(&mut self, core: CoreId, key: &[u8]) {
        self.now(core).state.remove(key);
    }

    /// A source was read up to here.
    pub fn offset(&mut self, core: CoreId, source: &str, offset: u64) {
        self.now(core).offsets.insert(source.to_owned(), offset);
    }

    /// A source is read no longer.
    pub fn forget_offset(&mut self, core: CoreId, source: &str) {
        self.now(core).offsets.remove(source);
    }

    /// A core's watermark advanced.
    pub fn watermark(&mut self, core: CoreId, watermark: i64) {
        self.now(core).watermark = Some(watermark);
    }

    /// A core closes its epoch. Note it before the store is told to, and before any of it may be
    /// written. Returns the epoch that was closed.
    pub fn seal(&mut self, core: CoreId) -> Epoch {
        let core = self.core(core);
        let epoch = core.open;
        core.sealed.insert(epoch, Arc::clone(&core.now));
        core.open = epoch.next();
        epoch
    }

    /// A core closes every epoch up to this one. What it changed since its last seal belongs to the
    /// first of them; the others are empty. Note it before the store is told to.
    pub fn seal_to(&mut self, core: CoreId, epoch: Epoch) {
        while self.core(core).open <= epoch {
            self.seal(core);
        }
    }

    /// The epoch that a core's changes go to.
    #[must_use]
    pub fn open_epoch(&self, core: CoreId) -> Epoch {
        self.cores[usize::from(core.get())].open
    }

    /// Number of cores.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.cores.len()
    }

    /// The store said that everything up to this epoch is durable. Note it after it did.
    pub fn ack(&mut self, epoch: Epoch) {
        self.acked = self.acked.max(epoch);
    }

    /// The same, had nothing above this epoch been acknowledged: to tell which loss it was.
    #[must_use]
    pub fn lowered_to(&self, epoch: Epoch) -> Self {
        Self { acked: self.acked.min(epoch), ..self.clone() }
    }

    /// The largest acknowledged epoch.
    #[must_use]
    pub fn acked(&self) -> Epoch {
        self.acked
    }

    /// The largest epoch that every core has sealed.
    #[must_use]
    pub fn sealed_by_all(&self) -> Epoch {
        let last = |core: &Core| core.sealed.keys().next_back().copied();
        let last = self.cores.iter().filter_map(last);
        last.min().unwrap_or_default()
    }

    /// What a core holds now, changes of its open epoch included.
    #[must_use]
    pub fn state(&self, core: CoreId) -> &State {
        &self.cores[usize::from(core.get())].now.state
    }

    /// Savepoint number `n` was returned: it is there from now on.
    pub fn saved(&mut self, n: u8) {
        self.saved.insert(n);
    }

    /// The fork of savepoint number `n` acknowledged its change.
    pub fn forked(&mut self, n: u8) {
        self.forked.insert(n);
    }

    /// Whether savepoint number `n` must be there, and the change of its fork.
    #[must_use]
    pub fn has_savepoint(&self, n: u8) -> (bool, bool) {
        (self.saved.contains(&n), self.forked.contains(&n))
    }

    /// What recovery at an epoch must find; `None` when some core has not sealed it.
    #[must_use]
    pub fn expected(&self, epoch: Epoch) -> Option<Recovered> {
        let views: Vec<&View> =
            self.cores.iter().map(|core| core.sealed.get(&epoch).map(Arc::as_ref)).collect::<Option<_>>()?;
        let mut expected = Recovered { epoch, ..Recovered::default() };
        for view in views {
            expected.state.push(view.state.clone());
            for (source, offset) in &view.offsets {
                let there = expected.offsets.entry(source.clone()).or_default();
                *there = (*there).max(*offset);
            }
            expected.watermark = match (expected.watermark, view.watermark) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        Some(expected)
    }

    /// Whether recovery may have found this.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check_recovered(&self, found: &Recovered) -> Result<(), String> {
        let (r, acked, sealed) = (found.epoch, self.acked, self.sealed_by_all());
        if r < acked {
            return Err(format!("LOST: landed on epoch {r}, {acked} was acknowledged"));
        }
        if r > sealed {
            return Err(format!("PHANTOM: landed on epoch {r}, all cores sealed only {sealed}"));
        }
        let Some(expected) = self.expected(r) else {
            return Err(format!("PHANTOM: landed on epoch {r}, which was never sealed"));
        };
        if found.state.len() == expected.state.len() {
            for (core, (found, expected)) in found.state.iter().zip(&expected.state).enumerate() {
                same_state(&format!("core {core} at epoch {r}"), found, expected)?;
            }
        } else {
            let union = |cores: &[State]| -> State { cores.iter().flatten().map(own).collect() };
            let what = format!("the union of the cores at epoch {r}");
            same_state(&what, &union(&found.state), &union(&expected.state))?;
            let keys: usize = found.state.iter().map(BTreeMap::len).sum();
            let once: usize = expected.state.iter().map(BTreeMap::len).sum();
            if keys != once {
                return Err(format!("WRONG: {what}: {keys} keys instead of {once}, some are on two cores"));
            }
        }
        same("offsets", &found.offsets, &expected.offsets)?;
        same("watermark", &found.watermark, &expected.watermark)
    }

    /// The store is open at an epoch that [`Self::check_recovered`] accepted, and goes on with `next`.
    /// From now on a crash may not lose that epoch, nor bring back what was discarded.
    pub fn landed(&mut self, epoch: Epoch, next: Epoch) {
        self.ack(epoch);
        for core in &mut self.cores {
            core.sealed.retain(|sealed, _| *sealed <= epoch);
            if let Some(view) = core.sealed.get(&epoch) {
                core.now = Arc::clone(view);
            }
            core.open = next;
        }
        self.forget_before(epoch);
    }

    /// As [`Self::landed`], when the store may have distributed its keys anew: `layout` is what every
    /// core holds now, which the caller has compared with this model.
    pub fn adopt(&mut self, epoch: Epoch, next: Epoch, layout: Vec<CoreView>) {
        let core = |(state, offsets, watermark)| {
            let now = Arc::new(View { state, offsets, watermark });
            Core { now: Arc::clone(&now), open: next, sealed: BTreeMap::from([(epoch, now)]) }
        };
        self.cores = layout.into_iter().map(core).collect();
        self.ack(epoch);
    }

    /// Drops the states of epochs that no recovery may land on any more.
    pub fn forget_before(&mut self, epoch: Epoch) {
        let first = epoch.min(self.acked);
        for core in &mut self.cores {
            core.sealed.retain(|sealed, _| *sealed >= first);
        }
    }
}

fn own((key, value): (&Vec<u8>, &Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    (key.clone(), value.clone())
}

fn same<T: PartialEq + fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("WRONG: {what} {found:?}, expected {expected:?}"))
}

/// Text for a key or value, shortened.
fn show(bytes: Option<&Vec<u8>>) -> String {
    match bytes {
        None => "nothing".into(),
        Some(bytes) if bytes.len() <= 24 => format!("\"{}\"", bytes.escape_ascii()),
        Some(bytes) => {
            let len = bytes.len();
            format!("\"{}…\" ({len} bytes)", bytes[..16].escape_ascii())
        }
    }
}

fn same_state(what: &str, found: &State, expected: &State) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let keys = expected.keys().chain(found.keys());
    let mut wrong = keys.filter(|key| found.get(*key) != expected.get(*key));
    let first = wrong.next();
    let (is, should) = (first.and_then(|key| found.get(key)), first.and_then(|key| expected.get(key)));
    Err(format!(
        "WRONG: {what}: key {} is {}, expected {} ({} keys found, {} expected)",
        show(first),
        show(is),
        show(should),
        found.len(),
        expected.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: CoreId = CoreId(0);
    const B: CoreId = CoreId(1);

    /// Epoch 1 sealed on both, epoch 2 on the first core only, changes after that.
    fn model() -> Model {
        let mut model = Model::new(2);
        model.put(A, b"a", b"1");
        model.offset(A, "in", 5);
        model.watermark(A, 50);
        model.put(B, b"b", b"1");
        model.offset(B, "in", 7);
        model.watermark(B, 40);
        assert_eq!((model.seal(A), model.seal(B)), (Epoch(1), Epoch(1)));
        model.put(A, b"a", b"2");
        model.seal(A);
        model.delete(A, b"a");
        model
    }

    #[test]
    fn an_epoch_is_found_exactly() {
        let model = model();
        let found = model.expected(Epoch(1)).unwrap();
        assert_eq!(found.offsets["in"], 7);
        assert_eq!(found.watermark, Some(40));
        assert_eq!(found.state[0][b"a".as_slice()], b"1");
        model.check_recovered(&found).unwrap();
        model.check_recovered(&model.expected(Epoch::ZERO).unwrap()).unwrap();
        assert_eq!(model.sealed_by_all(), Epoch(1));
        assert_eq!(model.expected(Epoch(2)), None);
    }

    #[test]
    fn anything_else_is_refused() {
        let mut model = model();
        let found = model.expected(Epoch(1)).unwrap();
        let refuse = |model: &Model, found: &Recovered, why: &str| {
            let error = model.check_recovered(found).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        };
        let epoch = |epoch| Recovered { epoch, ..found.clone() };
        refuse(&model, &epoch(Epoch(2)), "PHANTOM");
        refuse(&model, &epoch(Epoch(0)), "WRONG");
        for change in 0..6 {
            let mut found = found.clone();
            match change {
                0 => drop(found.state[0].remove(b"a".as_slice())),
                1 => drop(found.state[1].insert(b"x".to_vec(), vec![])),
                2 => drop(found.state[0].insert(b"a".to_vec(), b"2".to_vec())),
                3 => drop(found.offsets.insert("in".into(), 8)),
                4 => found.watermark = None,
                _ => found.state.swap(0, 1),
            }
            refuse(&model, &found, "WRONG");
        }
        model.ack(Epoch(1));
        refuse(&model, &model.expected(Epoch(0)).unwrap(), "LOST");
    }

    #[test]
    fn another_number_of_cores_is_compared_as_a_union() {
        let model = model();
        let mut found = model.expected(Epoch(1)).unwrap();
        let second = found.state.pop().unwrap();
        found.state[0].extend(second.clone());
        model.check_recovered(&found).unwrap();
        found.state.push(State::new());
        found.state.push(second);
        assert!(model.check_recovered(&found).unwrap_err().contains("two cores"));
    }

    #[test]
    fn landing_discards_what_came_later_for_good() {
        let mut model = model();
        model.landed(Epoch(1), Epoch(3));
        assert_eq!(model.acked(), Epoch(1));
        assert_eq!(model.state(A)[b"a".as_slice()], b"1");
        assert_eq!((model.seal(A), model.seal(B)), (Epoch(3), Epoch(3)));
        assert_eq!(model.sealed_by_all(), Epoch(3));
        let mut found = model.expected(Epoch(3)).unwrap();
        model.check_recovered(&found).unwrap();
        found.epoch = Epoch(2);
        assert!(model.check_recovered(&found).is_err(), "never sealed");
    }
}
