//! System tests: whole programs and whole repositories, in one binary so that they link once.

mod admin;
mod bad_input;
mod borders;
mod door;
mod failover;
mod fuzz;
mod log_tool;
mod memory_backend;
mod node;
mod programs;
