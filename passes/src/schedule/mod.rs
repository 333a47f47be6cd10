//! Schedules: rewrites of loop nests that keep their meaning, recorded in the kernel's trace.
