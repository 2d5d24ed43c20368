#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::io;

use super::*;

const PART: SinkPart = SinkPart { generation: 1, worker: 3 };

/// Has everything up to an epoch; says that it would be cut back to the second, and is cut back to the third.
struct Fake(Epoch, Epoch, Epoch);

impl EpochSink<u64> for Fake {
    fn committed(&self) -> Epoch {
        self.0
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<u64>)]) -> io::Result<()> {
        self.0 = epochs.last().map_or(self.0, |(epoch, _)| *epoch);
        Ok(())
    }

    fn prepare_cut_back(&mut self, _: Epoch) -> io::Result<CutBack<Self>> {
        Ok(CutBack::new(self.1, |sink: &mut Self| {
            sink.0 = sink.2;
            Ok(())
        }))
    }
}

/// The state goes to 8, and rows up to 5 are not in it any more.
fn ask(sink: &mut Fake, restored: bool) -> Result<Option<CutBack<Fake>>, String> {
    let known = Known { name: "out", part: PART, point: Epoch(8), restored, had: Epoch(5) };
    known.ask(sink).map_err(|refusal| refused(&[refusal]).unwrap().to_string())
}

#[test]
fn a_sink_goes_on_with_no_less_than_the_state_gave_up_and_no_more_than_it_has() {
    let fake = |has, to| Fake(Epoch(has), Epoch(to), Epoch(to));
    for (has, to, restored, sign) in [
        (4, 0, true, "had committed them up to 5"),
        (5, 0, false, ""),
        (8, 0, true, ""),
        (9, 8, false, "put together what belongs together"),
        (9, 8, true, ""),
        (9, 5, true, ""),
        (9, 4, true, "those up to 5 are not in the state any more"),
        (12, 9, true, "it would keep what it has up to epoch 9"),
    ] {
        match ask(&mut fake(has, to), restored) {
            Ok(cut) => assert_eq!((sign, cut.map(|cut| cut.to.0)), ("", (has > 8).then_some(to))),
            Err(said) => {
                assert!(!sign.is_empty() && said.contains(sign), "{has} {to} {restored}: {said}");
                let which = "the sink \"out\" of g0001-w0003";
                assert!(said.contains(which) && said.contains("No sink was changed"), "{said}");
            }
        }
    }
}

#[test]
fn a_sink_that_is_not_cut_back_to_where_it_said_does_not_go_on() {
    let mut sink = Fake(Epoch(12), Epoch(7), Epoch(6));
    let cut = ask(&mut sink, true).unwrap();
    let opened = Opened { part: PART, sink, cut, waiting: vec![(Epoch(8), vec![1])] };
    let Err(error) = opened.begin("out", &Pulse::default()) else { panic!("it went on") };
    assert!(error.to_string().contains("was to be cut back to epoch 7, and has 6"), "{error}");
}

#[test]
fn all_sinks_that_refuse_are_named() {
    let known = |worker| Known {
        name: "out",
        part: SinkPart { generation: 2, worker },
        point: Epoch(8),
        restored: false,
        had: Epoch(5),
    };
    let refusal = |worker| known(worker).ask(&mut Fake(Epoch(9), Epoch(0), Epoch(0))).unwrap_err();
    let said = refused(&[refusal(0), refusal(1), refusal(2)]).unwrap().to_string();
    let others = "nor can these go on: the sink \"out\" of g0002-w0001, the sink \"out\" of g0002-w0002";
    assert!(said.contains("the sink \"out\" of g0002-w0000 has epoch 9") && said.contains(others), "{said}");
    assert!(refused(&[]).is_none());
}
