//! Ring 0: the state of one core in memory. The only folder with `unsafe`.
