//! A disk in memory that forgets, tears and reorders what was not synced.
