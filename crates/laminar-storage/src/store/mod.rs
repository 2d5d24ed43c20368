//! What people use: `Store`, its builder, its cores and its reports.
