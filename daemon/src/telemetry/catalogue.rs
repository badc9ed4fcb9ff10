//! Every metric there is: its name, kind, labels and meaning, in one place.
//!
//! Called by [`super::metrics`] for what is counted, and by the engine for what is read when someone scrapes.
//! `docs/observability.md` has the same table, and a test compares them. A name never changes its meaning: what means
//! something else gets another name.

use prometheus_client::metrics::MetricType;

/// One metric. Its name on the wire has `orlop_` before it, and `_total` or `_info` behind it where its kind has.
#[derive(Debug)]
pub struct Metric {
    /// Its name without prefix and suffix. Units are base units, and the last word of it.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of who counts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often how much.
    Histogram,
    /// 1, with labels that say something.
    Info,
}

impl Kind {
    /// As the encoder knows it.
    pub(super) fn encoded(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(#[doc = $help]
        pub const $id: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// All of them.
        pub const ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    BUILD Info "build" ["version"] "Build of the daemon";
    STATE Gauge "state" ["state"] "1 for the state that the daemon is in";

    ACTIONS Counter "actions" ["verb" "outcome"] "Changes by verb and outcome";
    ACTION_SECONDS Histogram "action_seconds" ["verb" "outcome"] "How long changes took";
    HTTP_REQUESTS Counter "http_requests" ["method" "route" "status"] "Requests by method, route and status";
    HTTP_REQUEST_SECONDS Histogram "http_request_seconds" [] "How long requests took";
    HTTP_CONNECTIONS Gauge "http_connections" ["listener"] "Open connections";
    HTTP_REFUSALS Counter "http_refusals" ["listener" "reason"] "Connections refused or cut off by the caps";

    VOLUMES Gauge "volumes" [] "Volumes";
    VOLUME_STATES Gauge "volume_states" ["state"] "Volumes by state";
    HOSTS Gauge "hosts" [] "Hosts";
    ATTACHMENTS Gauge "attachments" [] "Attachments";
    LABELS_WAITING Gauge "labels_waiting" [] "Volumes whose label is older than what is known of them";
    UNSETTLED Gauge "unsettled_operations" [] "Interrupted operations that are neither carried out nor undone yet";
    RETRIED Gauge "volumes_retried" [] "Volumes that could not be served and are tried again";

    ALARMS Gauge "alarms" ["severity" "state"] "Alarms that a person should look at";
    ALARMS_RAISED Counter "alarms_raised" ["severity"] "Alarms that were raised since the start";
    ALARM_SINCE Gauge "alarm_since_timestamp_seconds" ["subject" "severity" "state"] "Since when there is an alarm; the worst and oldest 100";

    EVENTS Counter "events" [] "Events since the start";
    EVENTS_DROPPED Counter "events_dropped" [] "Events since the start that are not kept any more";
    EVENT_GAPS Counter "event_gaps" [] "Gaps that readers of events were told of";

    POOLS Gauge "pools" [] "Pools";
    POOL_ONLINE Gauge "pool_online" ["pool"] "Whether a pool can be used";
    POOL_TOTAL Gauge "pool_total_bytes" ["pool"] "What a pool could hold";
    POOL_USED Gauge "pool_used_bytes" ["pool"] "What is taken";
    POOL_AVAILABLE Gauge "pool_available_bytes" ["pool"] "What is left";
    POOL_PROVISIONED Gauge "pool_provisioned_bytes" ["pool"] "The sum of the sizes of its volumes";
    POOL_VOLUMES Gauge "pool_volumes" ["pool"] "Volumes in a pool";
    POOL_FILL_RATIO Gauge "pool_fill_ratio" ["pool"] "What is taken, of what a pool could hold: 0 to 1";
    POOL_METADATA_RATIO Gauge "pool_metadata_ratio" ["pool"] "How full a pool's own metadata are, where they have room of their own: 0 to 1";
    POOL_FILL Gauge "pool_fill" ["pool" "level"] "1 for the level that a pool is at by its thresholds: ok, warning, full";
    POOL_OBSERVED Gauge "pool_observed_timestamp_seconds" ["pool"] "When a pool's sizes were read";
    POOL_HEALTH Gauge "pool_health" ["pool" "state"] "1 for the state of a pool's disks: ok, degraded, failed; where that is known";
    POOL_ERRORS Gauge "pool_data_errors" ["pool"] "Errors in data that can't be repaired, where that is known";
    POOL_SCAN_RUNNING Gauge "pool_scan_running" ["pool" "kind"] "1 while a scrub or rebuild goes over a pool";
    POOL_SCAN_RATIO Gauge "pool_scan_ratio" ["pool" "kind"] "How far a scrub or rebuild is that is under way: 0 to 1";
    POOL_SCAN_ERRORS Gauge "pool_scan_errors" ["pool" "kind"] "Errors that the last scrub or rebuild could not repair";
    POOL_SCAN_ENDED Gauge "pool_scan_ended_timestamp_seconds" ["pool" "kind"] "When the last scrub or rebuild ended";
    POOL_DISKS Gauge "pool_disks" ["pool" "state"] "A pool's disks by state, in the pool's own words";
    DISK_ERRORS Gauge "pool_disk_errors" ["pool" "disk" "kind"] "Errors of a pool's disk, as the pool counts them: read, write, checksum";

    LANE_DEPTH Gauge "lane_depth" ["lane"] "Jobs that wait in a lane";
    LANE_HUNG Gauge "lane_hung_threads" ["lane"] "Threads of a lane that hang, or are so slow that others stand in for them";
    LANE_OLDEST_WAITING Gauge "lane_oldest_waiting_seconds" ["lane"] "For how long the oldest job that waits has waited; 0 if none does";
    LANE_OLDEST_RUNNING Gauge "lane_oldest_running_seconds" ["lane"] "For how long the oldest job that runs has run, given up or not; 0 if none does";
    LANE_WAIT Histogram "lane_wait_seconds" ["lane"] "How long jobs waited for their turn";
    LANE_RUN Histogram "lane_run_seconds" ["lane"] "How long jobs ran";
    LANE_FAILURES Counter "lane_failures" ["lane" "reason"] "Jobs that a lane did not end: full (not taken), expired (never began), overrun (given up), died";

    JOURNAL_OPEN Gauge "journal_open" [] "Whether the journal takes changes";
    JOURNAL_DEPTH Gauge "journal_depth" [] "Batches that wait for the journal";
    JOURNAL_COMMIT Histogram "journal_commit_seconds" [] "From when a change is given to the journal until it is durable";
    JOURNAL_SYNC Histogram "journal_sync_seconds" [] "How long it took to write and sync what was written together";
    JOURNAL_CHANGES Histogram "journal_sync_changes" [] "Records that were written together";
    JOURNAL_CALLERS Histogram "journal_sync_callers" [] "Changes that shared a sync";

    TARGET_OFFERED Gauge "target_offered" ["protocol"] "Whether the configuration wants a protocol served";
    TARGET_PORTALS_DOWN Gauge "target_portals_down" ["protocol"] "Portals that could not be opened when the target was last converged";
    TARGET_VOLUMES Gauge "target_attached_volumes" ["protocol"] "Volumes that some host is attached to";
    TARGET_CONVERGED Counter "target_converges" ["protocol" "outcome"] "Times that a kernel target was brought to what it should be: ok, failed";
    TARGET_CONVERGE_SECONDS Histogram "target_converge_seconds" ["protocol"] "How long that took, waiting included";
    TARGET_SESSIONS Gauge "target_sessions" ["protocol"] "Controllers (NVMe), sessions (iSCSI) or clients (NFSv4) that the kernel has, where it tells";
    DRIFT Counter "drift" ["outcome"] "Volumes that the kernel did not serve as it should: put_back, failed";

    KERNEL_READ Gauge "kernel_read" [] "1 if the kernel's counters could be read for this scrape; without, their series are missing";
    KERNEL_READ_SECONDS Gauge "kernel_read_seconds" [] "How long reading them took";
    VOLUME_READS Counter "volume_reads" ["volume" "name" "pool" "protocol"] "Reads that the volume's device has ended";
    VOLUME_WRITES Counter "volume_writes" ["volume" "name" "pool" "protocol"] "Writes that the volume's device has ended";
    VOLUME_READ_BYTES Counter "volume_read_bytes" ["volume" "name" "pool" "protocol"] "Bytes read from the volume's device";
    VOLUME_WRITTEN_BYTES Counter "volume_written_bytes" ["volume" "name" "pool" "protocol"] "Bytes written to the volume's device";
    VOLUME_READ_SECONDS Counter "volume_read_seconds" ["volume" "name" "pool" "protocol"] "The sum of the times that reads took";
    VOLUME_WRITE_SECONDS Counter "volume_write_seconds" ["volume" "name" "pool" "protocol"] "The sum of the times that writes took";
    VOLUME_BUSY_SECONDS Counter "volume_busy_seconds" ["volume" "name" "pool" "protocol"] "For how long the volume's device had something to do";
    VOLUME_IN_FLIGHT Gauge "volume_in_flight" ["volume" "name" "pool" "protocol"] "Reads and writes under way in the volume's device";
    NFS_VOLUME_READ_BYTES Counter "nfs_volume_read_bytes" ["volume" "name" "pool"] "Bytes that NFS clients have read from a volume";
    NFS_VOLUME_WRITTEN_BYTES Counter "nfs_volume_written_bytes" ["volume" "name" "pool"] "Bytes that NFS clients have written to a volume";
    NFS_READ_BYTES Counter "nfs_read_bytes" [] "Bytes that NFS clients have read, of volumes and others";
    NFS_WRITTEN_BYTES Counter "nfs_written_bytes" [] "Bytes that NFS clients have written, of volumes and others";
    NFS_CALLS Counter "nfs_calls" [] "Calls of NFS clients";
    NFS_BAD_CALLS Counter "nfs_bad_calls" [] "Calls of NFS clients that the server did not take";

    RECOVERY_SECONDS Gauge "recovery_seconds" ["phase"] "How long each part of the last start took: pools, intents, exports";
    RECOVERY_VOLUMES Gauge "recovery_volumes" ["outcome"] "Attached volumes of the last start: restored, retried";
    RECOVERY_INTENTS Gauge "recovery_intents" [] "Interrupted operations that the last start found";

    LOG_DROPPED Counter "log_dropped_lines" [] "Log lines dropped since the start";
    PROCESS_RESIDENT Gauge "process_resident_bytes" [] "Memory of the daemon";
    PROCESS_FDS Gauge "process_open_fds" [] "Open file descriptors";
    PROCESS_MAX_FDS Gauge "process_max_fds" [] "File descriptors that may be open";
    PROCESS_THREADS Gauge "process_threads" [] "Threads of the daemon";
    PROCESS_CPU Counter "process_cpu_seconds" [] "Processor time that the daemon took";
    PROCESS_START Gauge "process_start_time_seconds" [] "When the daemon was started, in seconds since 1970";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn on_the_wire(m: &Metric) -> String {
        let suffix = match m.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("orlop_{}{suffix}", m.name)
    }

    fn unit(m: &Metric) -> &'static str {
        match m.name.rsplit('_').next().unwrap() {
            "seconds" => "seconds",
            "bytes" => "bytes",
            "ratio" => "ratio",
            _ => "",
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for m in ALL {
            assert!(seen.insert(m.name), "{} twice", m.name);
            assert!(m.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", m.name);
            for suffix in ["_total", "_info", "_count", "_sum", "_bucket", "_percent", "_ms", "_mib"] {
                assert!(!m.name.ends_with(suffix), "{}", m.name);
            }
            assert!(!m.help.ends_with('.') && !m.help.contains('|'), "{}", m.name);
        }
    }

    /// The table of the documentation is this one. To bring it up to date: what is printed if it is not.
    #[test]
    fn the_documentation_lists_what_there_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");
        let text = std::fs::read_to_string(path).unwrap();
        let row = |m: &&Metric| {
            let kind = format!("{:?}", m.kind).to_lowercase();
            format!(
                "| `{}` | {kind} | {} | {} | {} |\n",
                on_the_wire(m),
                m.labels.join(", "),
                unit(m),
                m.help
            )
        };
        let want: String = ALL.iter().map(row).collect();
        let got: String =
            text.lines().filter(|l| l.starts_with("| `orlop_")).map(|l| format!("{l}\n")).collect();
        assert!(got == want, "the table of docs/observability.md should be:\n{want}");
    }
}
