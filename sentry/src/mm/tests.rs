//! Tests of whole address spaces on the fake platform.
