//! Where rows go: a file, which is cut back when the job was restored, or only says so, which is a deliberate mistake.

use std::io;

use laminar_storage::Epoch;
use laminar_timely::{CutBack, EpochSink, FileSink};

pub struct Target<D> {
    file: FileSink<D>,
    cuts_back: bool,
    /// What it says it has, though it has more.
    pretended: Option<Epoch>,
}

impl<D> Target<D> {
    pub fn new(file: FileSink<D>, cuts_back: bool) -> Self {
        Self { file, cuts_back, pretended: None }
    }
}

impl<D: 'static> EpochSink<D> for Target<D> {
    fn committed(&self) -> Epoch {
        self.pretended.unwrap_or(self.file.committed())
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<D>)]) -> io::Result<()> {
        self.file.commit(epochs)?;
        self.pretended = None;
        Ok(())
    }

    fn prepare_cut_back(&mut self, epoch: Epoch) -> io::Result<CutBack<Self>> {
        let CutBack { to, cut } = self.file.prepare_cut_back(epoch)?;
        let cuts_back = self.cuts_back;
        Ok(CutBack::new(to, move |target: &mut Self| {
            if cuts_back {
                return cut(&mut target.file);
            }
            target.pretended = Some(to);
            Ok(())
        }))
    }
}
