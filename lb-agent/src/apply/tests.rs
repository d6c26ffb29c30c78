//! Tests of `apply`.

mod adoption;
mod allocators;
mod concurrent;
mod full;
mod interrupted;
mod model;
mod random;
mod scenarios;
mod steps;
mod worlds;
