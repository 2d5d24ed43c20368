//! stub
use crate::ids::*;
/// s
#[derive(Debug)]
pub struct Published {
    floor: Option<WalFloor>,
}
/// s
#[derive(Debug)]
pub struct WalFloor {
    /// s
    pub store_id: StoreId,
    /// s
    pub cuts: Vec<Sequence>,
}
impl Published {
    /// s
    #[must_use]
    pub fn wal_floor(&self) -> Option<&WalFloor> {
        self.floor.as_ref()
    }
}
