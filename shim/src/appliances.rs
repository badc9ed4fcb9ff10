//! The appliances: a client each, and where a new volume goes.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_api::client::{Client, Result as Answer};
use orlop_api::{ByteSize, ErrorKind, Pool, PoolName, Problem};
use parking_lot::Mutex;

use crate::config::{ApplianceConfig, Config};
use crate::csi::Topology;
use crate::deadline::Deadline;
use crate::handle::ApplianceName;

/// How often a call is made at most, if that can help.
const ATTEMPTS: u32 = 4;
/// Before the second one; each time twice as long, and up to half of it more by chance.
const PAUSE: Duration = Duration::from_millis(100);

/// What tells a file from what it was: projected secrets are replaced whole.
type Stamp = (i64, i64, u64, u64);

fn stamp(file: &Path) -> std::io::Result<Stamp> {
    let m = std::fs::metadata(file)?;
    Ok((m.mtime(), m.mtime_nsec(), m.ino(), m.len()))
}

/// A client, and the files that it was made of.
#[derive(Debug)]
struct Connected {
    client: Client,
    of: Vec<Stamp>,
}

/// One appliance.
#[derive(Debug)]
pub struct Appliance {
    config: ApplianceConfig,
    connected: Mutex<Option<Connected>>,
    /// What sizes of volumes are multiples of, by pool: it never changes.
    granularity: Mutex<HashMap<PoolName, ByteSize>>,
}

impl Appliance {
    /// Its name.
    pub fn name(&self) -> &ApplianceName {
        &self.config.name
    }

    /// The nodes that reach it. `None`: all.
    pub fn topology(&self) -> Option<Topology> {
        let segments: HashMap<_, _> = self.config.segments.clone().into_iter().collect();
        (!segments.is_empty()).then_some(Topology { segments })
    }

    /// Whether nodes with these labels reach it.
    fn is_reached_from(&self, of: &Topology) -> bool {
        self.config.segments.iter().all(|(key, value)| of.segments.get(key) == Some(value))
    }

    /// How far down it is among the places that are preferred.
    pub fn rank(&self, preferred: &[Topology]) -> usize {
        preferred.iter().position(|t| self.is_reached_from(t)).unwrap_or(usize::MAX)
    }

    /// The client, made anew if its files are others than before.
    #[allow(clippy::result_large_err)]
    fn client(&self) -> Answer<Client> {
        let c = &self.config;
        let files = [&c.token_file, &c.certificate_file, &c.key_file, &c.ca_file].map(Option::as_ref);
        let unread = |file: &Path, e: std::io::Error| {
            Problem::new(
                ErrorKind::Unavailable,
                format!("appliance {}: {}: {e}", self.name(), file.display()),
            )
        };
        let of: Answer<Vec<Stamp>> =
            files.iter().flatten().map(|file| stamp(file).map_err(|e| unread(file, e))).collect();
        let of = of?;
        let mut connected = self.connected.lock();
        if let Some(connected) = connected.as_ref().filter(|c| c.of == of) {
            return Ok(connected.client.clone());
        }
        let read = |file: &PathBuf| std::fs::read(file).map_err(|e| unread(file, e));
        let ca = c.ca_file.as_ref().map(read).transpose()?;
        let client = match (&c.token_file, &c.certificate_file, &c.key_file) {
            (Some(token), ..) => {
                let token = String::from_utf8_lossy(&read(token)?).into_owned();
                Client::tls(&c.url, token.trim().into(), ca.as_deref())
            }
            (None, Some(certificate), Some(key)) => {
                Client::mutual_tls(&c.url, &read(certificate)?, &read(key)?, ca.as_deref())
            }
            // Refused when the configuration is read.
            _ => Err(Problem::new(ErrorKind::Unauthenticated, "there is neither a token nor a certificate")),
        };
        // No fault of the call, whatever is wrong with a file: a certificate may be there before its key is.
        let client = client.map_err(|p| self.named(Problem { kind: ErrorKind::Unavailable, ..p }))?;
        *connected = Some(Connected { client: client.clone(), of });
        Ok(client)
    }

    /// Makes a call, again where that can help and there is time for it. All calls of the API may be made twice.
    #[allow(clippy::result_large_err)]
    pub async fn call<T, F: Future<Output = Answer<T>>>(
        &self,
        deadline: Deadline,
        call: impl Fn(Client) -> F,
    ) -> Answer<T> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            let left = deadline.left();
            if left.is_zero() {
                break;
            }
            let problem = match call(self.client()?.with_timeout(left)).await {
                Ok(answer) => return Ok(answer),
                Err(problem) => problem,
            };
            let wait = pause.mul_f64(1.0 + fastrand::f64() / 2.0);
            let may_help = matches!(problem.kind, ErrorKind::Busy | ErrorKind::Unavailable);
            if !may_help || attempt >= ATTEMPTS || deadline.left() <= wait {
                return Err(self.named(problem));
            }
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
        Err(self.named(Problem::new(ErrorKind::Deadline, "there is no time left")))
    }

    fn named(&self, problem: Problem) -> Problem {
        Problem { detail: format!("appliance {}: {}", self.name(), problem.detail), ..problem }
    }

    /// What sizes of volumes in a pool are multiples of.
    #[allow(clippy::result_large_err)]
    pub async fn granularity(&self, pool: &PoolName, deadline: Deadline) -> Answer<ByteSize> {
        if let Some(known) = self.granularity.lock().get(pool) {
            return Ok(*known);
        }
        Ok(self.pool(pool, deadline).await?.granularity)
    }

    /// A pool as it is now.
    #[allow(clippy::result_large_err)]
    pub async fn pool(&self, name: &PoolName, deadline: Deadline) -> Answer<Pool> {
        let pool = self.call(deadline, |client| async move { client.pool(name).await }).await?;
        self.granularity.lock().insert(name.clone(), pool.granularity);
        Ok(pool)
    }
}

/// For how long it counts where a volume may have been made that nobody has heard of.
const UNDECIDED: Duration = Duration::from_secs(3600);

/// All of them.
#[derive(Debug)]
pub struct Appliances {
    all: BTreeMap<ApplianceName, Arc<Appliance>>,
    /// Where a volume of a name was asked for without an answer that says whether it was made: it is asked for there
    /// again, and nowhere else, or there would be two.
    undecided: Mutex<HashMap<String, (ApplianceName, Instant)>>,
}

impl Appliances {
    /// Those of the configuration. Nothing is sent yet.
    pub fn new(config: Config) -> Self {
        let each = config.appliances.into_iter().map(|config| {
            let (connected, granularity) = Default::default();
            (config.name.clone(), Arc::new(Appliance { config, connected, granularity }))
        });
        Self { all: each.collect(), undecided: Mutex::default() }
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Appliance>> {
        self.all.values()
    }

    /// One of them.
    pub fn get(&self, name: &ApplianceName) -> Option<&Arc<Appliance>> {
        self.all.get(name)
    }

    /// Whether nodes differ in which they reach.
    pub fn have_topology(&self) -> bool {
        self.iter().any(|a| a.topology().is_some())
    }

    /// Those that are reached from where a volume must be, the preferred ones first. Without a requirement all.
    pub fn reached_from(&self, requisite: &[Topology], preferred: &[Topology]) -> Vec<Arc<Appliance>> {
        // What is preferred is among the required, where there is a requirement at all.
        let must = if requisite.is_empty() { preferred } else { requisite };
        let fits = |a: &&Arc<Appliance>| must.is_empty() || must.iter().any(|t| a.is_reached_from(t));
        let mut found: Vec<_> = self.iter().filter(fits).cloned().collect();
        found.sort_by_key(|a| a.rank(preferred));
        found
    }

    /// Where a volume of this name may have been made already.
    pub fn undecided(&self, volume: &str) -> Option<ApplianceName> {
        let mut undecided = self.undecided.lock();
        undecided.retain(|_, (_, since)| since.elapsed() < UNDECIDED);
        undecided.get(volume).map(|(name, _)| name.clone())
    }

    /// Notes that it was asked for there, or what is known again.
    pub fn decide(&self, volume: &str, at: Option<&ApplianceName>) {
        let mut undecided = self.undecided.lock();
        match at {
            Some(at) => drop(undecided.insert(volume.into(), (at.clone(), Instant::now()))),
            None => drop(undecided.remove(volume)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn three() -> Appliances {
        let one = |name: &str, zone: &str| ApplianceConfig {
            name: name.parse().unwrap(),
            url: "https://127.0.0.1:1".into(),
            token_file: Some("/nonexistent".into()),
            certificate_file: None,
            key_file: None,
            ca_file: None,
            segments: [("zone".to_string(), zone.to_string())].into(),
        };
        Appliances::new(Config { appliances: vec![one("a", "1"), one("b", "2"), one("c", "2")] })
    }

    fn zone(zone: &str) -> Topology {
        let of = [("zone", zone), ("host", "x")];
        Topology { segments: of.map(|(k, v)| (k.to_string(), v.to_string())).into() }
    }

    #[test]
    fn a_volume_goes_where_its_nodes_reach_it() {
        let all = three();
        let names = |requisite: &[Topology], preferred: &[Topology]| -> Vec<String> {
            all.reached_from(requisite, preferred).iter().map(|a| a.name().to_string()).collect()
        };
        assert_eq!(names(&[], &[]), ["a", "b", "c"]);
        assert_eq!(names(&[zone("2")], &[]), ["b", "c"]);
        assert_eq!(names(&[zone("1"), zone("2")], &[zone("2"), zone("1")]), ["b", "c", "a"]);
        assert_eq!(names(&[], &[zone("2")]), ["b", "c"]);
        assert_eq!(names(&[zone("3")], &[]), [""; 0]);
        assert_eq!(names(&[Topology::default()], &[]), [""; 0]);
    }

    #[test]
    fn where_one_may_be_is_remembered_until_it_is_known() {
        let all = three();
        assert_eq!(all.undecided("x"), None);
        let b = "b".parse().unwrap();
        all.decide("x", Some(&b));
        assert_eq!((all.undecided("x"), all.undecided("y")), (Some(b), None));
        all.decide("x", None);
        assert_eq!(all.undecided("x"), None);
    }

    #[tokio::test]
    async fn without_its_token_it_is_unavailable_and_named() {
        let all = three();
        let a = all.get(&"a".parse().unwrap()).unwrap();
        let soon = Deadline::after(Duration::from_secs(5));
        let problem = a.call(soon, |client| async move { client.system().await }).await.unwrap_err();
        assert_eq!(problem.kind, ErrorKind::Unavailable);
        assert!(
            problem.detail.contains("appliance a") && problem.detail.contains("/nonexistent"),
            "{problem}"
        );
    }
}
