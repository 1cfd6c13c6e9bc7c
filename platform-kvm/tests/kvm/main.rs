//! Tests that run guest code on whatever `/dev/kvm` is there. One binary without a harness, so that it can be carried into a
//! QEMU guest: one line per test, status 0 if none failed. The name appears when the test starts, so a stall shows where it is.
//!
//! - `kvm [FILTER…]` runs the tests whose name contains a filter; `--bench` prints costs instead; `--list` lists.
//! - `CAISSON_TEST_SCALE` (default 1.0) multiplies iteration counts: 0.01 suits emulated hosts.
//! - `CAISSON_EXPECT_MODE` (`native,nested` | `native,shadow` | `emulated,shadow`) fails if the probe finds something else.

mod bench;
mod entry;
mod exitless;
mod faults;
mod fuzz;
mod hostile;
mod kicks;
mod lab;
mod memory;
mod programs;
mod reclaim;
mod revocation;
mod state;
mod stress;
mod turns;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("mode_is_as_expected", entry::mode_is_as_expected),
    ("syscall_keeps_every_register", entry::syscall_keeps_every_register),
    ("arbitrary_registers_enter_and_leave", entry::arbitrary_registers_enter_and_leave),
    ("every_exception_vector", entry::every_exception_vector),
    ("page_faults_say_what_was_tried", entry::page_faults_say_what_was_tried),
    ("single_step", entry::single_step),
    ("registers_the_cpu_would_refuse", entry::registers_the_cpu_would_refuse),
    ("privileged_instructions", hostile::privileged_instructions),
    ("ports_of_the_stub", hostile::ports_of_the_stub),
    ("upper_half_is_closed", hostile::upper_half_is_closed),
    ("jump_into_the_stub", hostile::jump_into_the_stub),
    ("thirty_two_bit_code", hostile::thirty_two_bit_code),
    ("hypercalls_leave_the_text_alone", hostile::hypercalls_leave_the_text_alone),
    ("fpu_state_is_the_threads_own", state::fpu_state_is_the_threads_own),
    ("fpu_state_can_be_read_and_set", state::fpu_state_can_be_read_and_set),
    ("hostile_fpu_states", state::hostile_fpu_states),
    ("fs_and_gs_base", state::fs_and_gs_base),
    ("data_segments_are_the_threads_own", state::data_segments_are_the_threads_own),
    ("time_stamp_counter_is_the_hosts", state::time_stamp_counter_is_the_hosts),
    ("map_unmap_lookup", memory::map_unmap_lookup),
    ("truncated_file_is_a_page_fault", memory::truncated_file_is_a_page_fault),
    ("tables_are_given_back", memory::tables_are_given_back),
    ("table_limit_is_an_error", memory::table_limit_is_an_error),
    ("unmapped_page_is_gone", revocation::unmapped_page_is_gone),
    ("unmapped_page_is_gone_while_running", revocation::unmapped_page_is_gone_while_running),
    ("unmapped_in_place_while_running", revocation::unmapped_in_place_while_running),
    ("write_protected_in_place_while_running", revocation::write_protected_in_place_while_running),
    ("stragglers_leave", revocation::stragglers_leave),
    ("mapped_ahead_is_taken_away", revocation::mapped_ahead_is_taken_away),
    ("write_protected_while_running", revocation::write_protected_while_running),
    ("execution_revoked_while_running", revocation::execution_revoked_while_running),
    ("replaced_page_while_running", revocation::replaced_page_while_running),
    ("split_and_merge_while_running", revocation::split_and_merge_while_running),
    ("blocks_change_under_readers", revocation::blocks_change_under_readers),
    ("a_block_is_seen_at_its_place_only", revocation::a_block_is_seen_at_its_place_only),
    ("a_block_comes_back_without_a_flush", revocation::a_block_comes_back_without_a_flush),
    ("table_pages_are_reused_safely", revocation::table_pages_are_reused_safely),
    ("writers_never_notice_a_revocation", revocation::writers_never_notice_a_revocation),
    ("two_threads_revoke_at_once", revocation::two_threads_revoke_at_once),
    ("random_mappings_never_show_the_wrong_page", stress::random_mappings_never_show_the_wrong_page),
    ("kicks_of_a_spinning_guest", kicks::kicks_of_a_spinning_guest),
    ("kicks_of_a_syscalling_guest", kicks::kicks_of_a_syscalling_guest),
    ("kick_before_run", kicks::kick_before_run),
    ("a_waiting_thread_answers_calls", exitless::a_waiting_thread_answers_calls),
    ("random_code", fuzz::random_code),
    ("calls_lead_back_to_ring3", exitless::calls_lead_back_to_ring3),
    ("calls_without_a_dispatcher_exit", exitless::calls_without_a_dispatcher_exit),
    ("calls_are_answered_without_exit", exitless::calls_are_answered_without_exit),
    ("answers_that_want_the_thread_outside", exitless::answers_that_want_the_thread_outside),
    ("kicks_of_a_guest_whose_calls_are_answered", exitless::kicks_of_a_guest_whose_calls_are_answered),
    ("patched_calls_are_answered_without_exit", exitless::patched_calls_are_answered_without_exit),
    ("patched_calls_of_a_program_that_uses_gs", exitless::patched_calls_of_a_program_that_uses_gs),
    ("kicks_of_a_guest_with_patched_calls", exitless::kicks_of_a_guest_with_patched_calls),
    (
        "a_space_is_dropped_by_the_dispatcher_of_its_slot",
        exitless::a_space_is_dropped_by_the_dispatcher_of_its_slot,
    ),
    ("many_guests_that_call_come_to_their_end", exitless::many_guests_that_call_come_to_their_end),
    ("slots_are_scribbled_over", exitless::slots_are_scribbled_over),
    ("threads_take_turns", turns::threads_take_turns),
    ("turns_under_kicks", turns::turns_under_kicks),
    ("contexts_are_scribbled_over", turns::contexts_are_scribbled_over),
    ("faults_without_a_dispatcher_exit", faults::faults_without_a_dispatcher_exit),
    ("faults_are_resolved_without_exit", faults::faults_are_resolved_without_exit),
    ("faults_that_are_refused_exit", faults::faults_that_are_refused_exit),
    ("kicks_of_a_guest_whose_faults_are_resolved", faults::kicks_of_a_guest_whose_faults_are_resolved),
    ("faults_are_scribbled_over", faults::faults_are_scribbled_over),
    ("jump_into_the_code_that_posts_faults", faults::jump_into_the_code_that_posts_faults),
    ("more_threads_than_vcpus", reclaim::more_threads_than_vcpus),
    ("more_spinning_threads_than_vcpus", reclaim::more_spinning_threads_than_vcpus),
];

fn main() {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    if arguments.iter().any(|a| a == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    if let Err(error) = caisson_platform_kvm::open_kvm() {
        println!("platform-kvm: SKIPPED all tests: {error}");
        println!("platform-kvm: 0 passed, 0 failed, {} skipped", TESTS.len());
        return;
    }
    if arguments.iter().any(|a| a == "--bench") {
        return bench::run();
    }
    let filters = arguments.iter().filter(|a| !a.starts_with('-')).collect::<Vec<_>>();
    let selected =
        TESTS.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in selected {
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let succeeded = catch_unwind(AssertUnwindSafe(test)).is_ok();
        let seconds = start.elapsed().as_secs_f64();
        if succeeded {
            passed += 1;
            println!("ok ({seconds:.2} s)");
        } else {
            failed += 1;
            println!("({seconds:.2} s)\ntest {name} ... FAILED");
        }
    }
    println!("platform-kvm: {passed} passed, {failed} failed, 0 skipped");
    std::process::exit(i32::from(failed > 0));
}
