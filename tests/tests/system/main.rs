//! Whole-system tests: an appliance and an initiator in QEMU, one boot of each for all scenarios. They run
//! in order, later ones on what earlier ones left, as an appliance lives; each asserts for itself.
//!
//! A scenario that fails does not stop the others. Console logs stay under `target/system`.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

mod access;
mod arrays;
mod bad_input;
mod conformance;
mod crashes;
mod disks;
mod documented;
mod guests;
mod iscsi;
mod kerberos;
mod kubernetes;
mod lifecycle;
mod multipath;
mod pools;
mod portals;
mod secrets;
mod shares;
mod snapshots;
mod tls;
mod torn;
mod torture;
mod unprotected;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use world::World;

type Scenario = (&'static str, fn(&mut World) -> anyhow::Result<()>);

/// What waits most comes first: beside it the contracts have the processors for themselves.
const SCENARIOS: &[Scenario] = &[
    ("pools_are_made_on_blank_disks_only", pools::made_on_blank_disks_only),
    // Before the others have anything attached to the host that it plays.
    ("the_commands_of_the_page_about_targets", documented::commands_of_the_page_run),
    ("volumes_reach_the_initiator_with_their_identity", lifecycle::volumes_reach_the_initiator),
    ("nothing_that_nobody_attached_is_exported", lifecycle::nothing_unattached_is_exported),
    ("a_second_convergence_is_empty", lifecycle::second_convergence_is_empty),
    ("a_pool_survives_lost_disks", disks::pool_survives_lost_disks),
    ("a_kill_at_every_failpoint_converges", crashes::kill_at_every_failpoint),
    ("a_power_cut_loses_nothing_acknowledged", crashes::power_cut_loses_nothing),
    ("a_host_proves_its_secret", secrets::host_proves_its_secret),
    ("a_host_comes_by_tls", tls::host_comes_by_tls),
    ("portals_have_states_and_limits", multipath::have_states_and_limits),
    ("portals_go_while_hosts_are_connected", portals::portals_go_while_hosts_are_connected),
    ("disks_by_iscsi", iscsi::disks_by_iscsi),
    ("a_part_of_libiscsis_tests", conformance::a_part),
    ("an_iscsi_host_proves_its_secret", iscsi::an_iscsi_host_proves_its_secret),
    ("a_fenced_iscsi_writer_is_cut_off", iscsi::a_fenced_iscsi_writer_is_cut_off),
    ("hosts_and_zones_share_file_systems", shares::hosts_and_zones_share_file_systems),
    ("a_fenced_nfs_writer_is_cut_off", shares::a_fenced_nfs_writer_is_cut_off),
    ("who_comes_by_kerberos_proves_it", kerberos::who_comes_by_kerberos),
    ("claims_of_kubernetes_reach_a_pod", kubernetes::claims_reach_a_pod),
    ("claims_of_kubernetes_prove_secrets", kubernetes::secrets::claims_prove_secrets),
    ("inline_volumes_of_kubernetes", kubernetes::inline::inline_volumes),
    ("claims_of_kubernetes_by_two_paths", kubernetes::paths::claims_by_two_paths),
    ("a_claim_moves_to_another_node", kubernetes::a_claim_moves),
    ("what_a_claim_has_is_written_back", kubernetes::slow::claims_are_written_back),
    ("backups_of_kubernetes_leave_nothing", kubernetes::backup::backups_leave_nothing),
    ("a_claim_survives_kills_and_power_cuts", kubernetes::a_claim_survives),
    ("claims_of_kubernetes_have_their_pods_labels", kubernetes::labels::claims_have_their_pods_labels),
    ("a_restart_is_not_noticed_by_writers", crashes::restart_is_not_noticed),
    ("kill_9_is_not_noticed_by_writers", crashes::kill_is_not_noticed),
    ("a_stop_leaves_targets_serving", crashes::stop_leaves_targets_serving),
    ("a_reader_can_not_write", access::reader_can_not_write),
    ("a_lost_disk_has_a_spare", disks::lost_disk_has_a_spare),
    // No daemon is started from here until it is put back: a start puts it back as well.
    ("what_is_changed_by_hand", access::changed_by_hand),
    ("a_volume_grows_while_connected", lifecycle::grows_while_connected),
    ("two_paths_carry_one_volume", lifecycle::two_paths),
    ("a_stranger_is_refused", access::stranger_is_refused),
    ("a_fenced_writer_is_cut_off", access::fenced_writer_is_cut_off),
    ("a_fence_spares_the_other_host", access::fence_spares_the_other_host),
    ("a_hung_volume_stalls_itself_alone", access::hung_volume_stalls_itself_alone),
    ("what_was_changed_by_hand_is_put_back", access::put_back_by_itself),
    ("bad_input_changes_nothing", bad_input::changes_nothing),
    ("bad_input_for_targets_changes_nothing", bad_input::for_targets_changes_nothing),
    ("a_full_pool_is_exhausted", bad_input::full_pool_is_exhausted),
    ("a_spare_takes_the_place_of_a_lost_disk", disks::spare_takes_the_place),
    ("a_group_under_writes_is_of_one_instant", snapshots::group_is_of_one_instant),
    ("a_spare_steps_back", disks::spare_steps_back),
    ("pulled_disks_harm_only_their_pools", unprotected::pulled_disks_harm_only_their_pools),
    ("an_idle_pool_waits_for_its_disk", unprotected::an_idle_pool_waits_for_its_disk),
    ("a_torn_change_of_lvm_is_as_if_not_begun", torn::a_torn_change_is_as_if_not_begun),
    ("lvm_on_mirrors_survives_lost_disks", arrays::lvm_survives_lost_disks),
    ("files_on_an_array_survive_lost_disks", arrays::files_survive_lost_disks),
    ("snapshots_clones_and_copies_keep_their_bytes", snapshots::keep_their_bytes),
    ("a_copy_goes_on_after_a_kill", snapshots::copy_goes_on_after_a_kill),
    ("a_lost_journal_is_rebuilt", crashes::lost_journal_is_rebuilt),
    ("everything_goes_away_again", lifecycle::everything_goes_away),
    ("a_short_torture_is_survived", torture::short),
    ("pool_contracts_on_zfs_and_lvm", guests::pool_contracts),
    ("target_contracts_on_the_kernel", guests::target_contracts),
    ("only_blank_disks_are_formatted_by_contract", guests::nothing_is_formatted),
];

/// What takes longer than is told by it each time: run where it is named.
const BY_NAME: &[Scenario] = &[
    ("the_whole_of_libiscsis_tests", conformance::all_of_it),
    ("five_hundred_backups", kubernetes::backup::five_hundred_backups),
];

fn main() -> ExitCode {
    // `cargo test system -- NAME` runs what is named so; libtest's own flags are not for us.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::args().any(|a| a == "--list") {
        SCENARIOS.iter().chain(BY_NAME).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let named = |name: &str| wanted.iter().any(|w| name.contains(w));
    // Those by name first: after the last of the others nothing is left.
    let chosen: Vec<_> = (BY_NAME.iter().filter(|(name, _)| named(name)))
        .chain(SCENARIOS.iter().filter(|(name, _)| wanted.is_empty() || named(name)))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    let start = Instant::now();
    let contracts = chosen.iter().any(|(name, _)| name.contains("contract"));
    let mut world = match World::start(contracts) {
        Ok(world) => world,
        Err(e) => {
            println!("the guests did not start: {e:#}");
            println!(
                "\ntest result: FAILED. 0 passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
                chosen.len()
            );
            return ExitCode::FAILURE;
        }
    };
    println!("appliance ready after {:.1} s", world.lab.boot.as_secs_f64());
    let mut failures = Vec::new();
    for (name, scenario) in &chosen {
        let started = Instant::now();
        let result = scenario(&mut world);
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
            Err(e) => {
                println!("test {name} ... FAILED ({took:.1} s)\n{e:#}\n");
                world.explain();
                world.let_go();
                failures.push((name, format!("{e:#}")));
            }
        }
    }
    // Once more where a long log is read first: at its end, and each reason begins with what failed first.
    for (name, why) in &failures {
        let why = why.lines().take(3).collect::<Vec<_>>().join("\n    ");
        println!("failed: {name}\n    {why}");
    }
    let failed = failures.len();
    let passed = chosen.len() - failed;
    let skipped = SCENARIOS.len() + BY_NAME.len() - chosen.len();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {skipped} filtered out; \
         finished in {:.2}s",
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
