//! The typed client: one method a route. Over the unix socket, or over TLS with a bearer token.
//!
//! Called by the CLI, the shim and tests. Every call has a timeout, and every failure is a [`Problem`]:
//! the daemon's own, or `unavailable` and `deadline` for what happened on the way. It never retries a
//! call; only the event stream reconnects.

#![allow(clippy::result_large_err)] // A problem is the answer to one network call: its size is nothing.

mod events;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use reqwest::{Method, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

use verify::Identity;

use crate::{
    Alarm, AlarmAcknowledge, AlarmSubject, Attachment, AuthenticationPut, ByteSize, ChapPut, Disk, DiskName,
    DiskWipe, ErrorKind, Event, Host, HostName, HostPut, Keytab, KeytabPut, MadeToken, OrphanAdopt, OrphanId,
    Orphans, Page, Pool, PoolCreate, PoolExpand, PoolName, PoolReplace, Problem, Reloaded, Restored,
    Snapshot, SnapshotBlocks, SnapshotCreate, SnapshotGroup, SnapshotGroupCreate, SnapshotName, SnapshotRef,
    System, Target, TlsPut, Token, TokenName, TokenPut, Volume, VolumeCreate, VolumeKey, VolumeName,
    VolumeRef, VolumeUpdate, When, Zone, ZonePut,
};

/// The answer to a call.
pub type Result<T> = std::result::Result<T, Problem>;

pub use verify::config as tls_config;

/// Longer than the daemon itself takes for a request (60 s and some), so that its own words arrive.
const CALL: Duration = Duration::from_secs(75);

/// From nothing to a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Shorter than the daemon keeps an idle connection (60 s), so that we close it, and not it under us.
const IDLE: Duration = Duration::from_secs(30);

/// Three of the daemon's keep-alives (15 s): an event stream that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// The largest answer that is read: a page of 1000 volumes has about half a megabyte.
const LARGEST_ANSWER: usize = 64 << 20;

/// See the module. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    calls: reqwest::Client,
    streams: reqwest::Client,
    base: Url,
    token: Option<Arc<SecretString>>,
    timeout: Duration,
}

/// Which volumes to list.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VolumeFilter {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// How many, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
    /// Those of this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The one with this name, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SnapshotFilter {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// How many, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
    /// Those of this volume, by its id or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRef>,
    /// The one with this name, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<SnapshotName>,
}

/// Which blocks of a snapshot to list.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BlockFilter {
    /// Those that are not as in this older snapshot of the same volume; without one those that have data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<SnapshotRef>,
    /// From this byte on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<ByteSize>,
    /// How many ranges, 1 to 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
}

/// Which hosts to list.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HostFilter {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// How many, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
}

/// How to attach.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct AttachAs {
    /// Cut off all other hosts of the volume first.
    pub exclusive: bool,
    /// The host can't write.
    pub read_only: bool,
}

impl Client {
    /// Through the unix socket at `path`.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        // No TLS is spoken here, but reqwest sets it up in any case and must not look for a provider.
        let tls = verify::config(None, None)?;
        let builder = || base(tls.clone()).unix_socket(path.clone());
        Self::build(builder, "http://orlopd/", None)
    }

    /// Over TLS at `url` (`https://...`). `ca` is PEM: either the daemon's own certificate, which is
    /// then pinned whatever name or address it is reached by, or an authority's. Without it the
    /// machine's authorities count.
    pub fn tls(url: &str, token: SecretString, ca: Option<&[u8]>) -> Result<Self> {
        Self::network(url, Some(token), None, ca)
    }

    /// The same with a client certificate and its key, both PEM, in the place of a token.
    pub fn mutual_tls(url: &str, certificate: &[u8], key: &[u8], ca: Option<&[u8]>) -> Result<Self> {
        Self::network(url, None, Some(Identity { certificate, key }), ca)
    }

    fn network(
        url: &str,
        token: Option<SecretString>,
        own: Option<Identity<'_>>,
        ca: Option<&[u8]>,
    ) -> Result<Self> {
        if !url.starts_with("https://") {
            return Err(Problem::new(ErrorKind::Invalid, "the URL must start with https://"));
        }
        let url = if url.ends_with('/') { url.to_owned() } else { format!("{url}/") };
        if let Some(pem) = ca {
            let tls = verify::config(Some(pem), own)?;
            return Self::build(|| base(tls.clone()).https_only(true), &url, token);
        }
        // A pair that does not belong together is told as such, and not when nobody can be reached by it.
        verify::config(None, own)?;
        // Fails if the program has chosen another provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = own.map(|own| reqwest::Identity::from_pem(&[own.key, b"\n", own.certificate].concat()));
        let wrong = |_| Problem::new(ErrorKind::Invalid, "the client's certificate and key can't be used");
        let own = own.transpose().map_err(wrong)?;
        let builder = || {
            let plain = common().https_only(true);
            own.clone().into_iter().fold(plain, |builder, own| builder.identity(own))
        };
        Self::build(builder, &url, token)
    }

    fn build(
        builder: impl Fn() -> reqwest::ClientBuilder,
        url: &str,
        token: Option<SecretString>,
    ) -> Result<Self> {
        let base = url.parse().map_err(|e| Problem::new(ErrorKind::Invalid, format!("the URL: {e}")))?;
        let calls = builder().build().map_err(transport)?;
        let streams = builder().read_timeout(SILENCE).build().map_err(transport)?;
        Ok(Self { calls, streams, base, token: token.map(Arc::new), timeout: CALL })
    }

    /// The same client with another timeout of each call.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// `GET /v1/system/backup`: what the journal alone knows, with secrets.
    pub async fn backup(&self) -> Result<Vec<u8>> {
        read(self.send(self.request(Method::GET, &["v1", "system", "backup"])?).await?).await
    }

    /// `PUT /v1/system/restore`. `force`: also another appliance's.
    pub async fn restore(&self, backup: Vec<u8>, force: bool) -> Result<Restored> {
        let query = serde_json::json!({ "force": force });
        self.json(self.request_with(Method::PUT, &["v1", "system", "restore"], &query)?.body(backup)).await
    }

    /// `POST /v1/system/reload`: has the configuration read anew.
    pub async fn reload(&self) -> Result<Reloaded> {
        self.json(self.request(Method::POST, &["v1", "system", "reload"])?).await
    }

    /// `PUT /v1/system/keytab`
    pub async fn put_keytab(&self, ask: &KeytabPut) -> Result<Keytab> {
        self.ask(Method::PUT, &["v1", "system", "keytab"], ask).await
    }

    /// `DELETE /v1/system/keytab`
    pub async fn delete_keytab(&self) -> Result<()> {
        self.delete(&["v1", "system", "keytab"]).await
    }

    /// `GET /v1/system`
    pub async fn system(&self) -> Result<System> {
        self.get(&["v1", "system"]).await
    }

    /// Whether the daemon takes changes.
    pub async fn ready(&self) -> Result<()> {
        self.send(self.request(Method::GET, &["readyz"])?).await.map(drop)
    }

    /// `GET /v1/targets`: asks every target, so it takes a moment.
    pub async fn targets(&self) -> Result<Vec<Target>> {
        Ok(self.get::<Page<Target>>(&["v1", "targets"]).await?.items)
    }

    /// `GET /v1/alarms`
    pub async fn alarms(&self) -> Result<Vec<Alarm>> {
        Ok(self.get::<Page<Alarm>>(&["v1", "alarms"]).await?.items)
    }

    /// `POST /v1/alarms/acknowledge`
    pub async fn acknowledge_alarm(&self, subject: &AlarmSubject) -> Result<Alarm> {
        let ask = AlarmAcknowledge { subject: subject.clone() };
        self.ask(Method::POST, &["v1", "alarms", "acknowledge"], &ask).await
    }

    /// `GET /v1/disks`
    pub async fn disks(&self) -> Result<Vec<Disk>> {
        Ok(self.get::<Page<Disk>>(&["v1", "disks"]).await?.items)
    }

    /// `POST /v1/disks/{disk}/wipe`
    pub async fn wipe_disk(&self, disk: &DiskName, ask: &DiskWipe) -> Result<Disk> {
        self.ask(Method::POST, &["v1", "disks", disk.as_str(), "wipe"], ask).await
    }

    /// `GET /metrics`, as text.
    pub async fn metrics(&self) -> Result<String> {
        let response = self.send(self.request(Method::GET, &["metrics"])?).await?;
        response.text().await.map_err(transport)
    }

    /// `GET /v1/openapi.json`
    pub async fn openapi(&self) -> Result<serde_json::Value> {
        self.get(&["v1", "openapi.json"]).await
    }

    /// `GET /v1/pools`
    pub async fn pools(&self) -> Result<Vec<Pool>> {
        Ok(self.get::<Page<Pool>>(&["v1", "pools"]).await?.items)
    }

    /// `GET /v1/pools/{pool}`
    pub async fn pool(&self, pool: &PoolName) -> Result<Pool> {
        self.get(&["v1", "pools", pool.as_str()]).await
    }

    /// `POST /v1/pools`
    pub async fn create_pool(&self, ask: &PoolCreate) -> Result<Pool> {
        self.ask(Method::POST, &["v1", "pools"], ask).await
    }

    /// `POST /v1/pools/{pool}/export`
    pub async fn export_pool(&self, pool: &PoolName) -> Result<()> {
        self.send(self.request(Method::POST, &["v1", "pools", pool.as_str(), "export"])?).await.map(drop)
    }

    /// `POST /v1/pools/{pool}/disks`
    pub async fn expand_pool(&self, pool: &PoolName, ask: &PoolExpand) -> Result<Pool> {
        self.ask(Method::POST, &["v1", "pools", pool.as_str(), "disks"], ask).await
    }

    /// `POST /v1/pools/{pool}/replace`
    pub async fn replace_disk(&self, pool: &PoolName, ask: &PoolReplace) -> Result<Pool> {
        self.ask(Method::POST, &["v1", "pools", pool.as_str(), "replace"], ask).await
    }

    /// `POST /v1/pools/{pool}/scrub`
    pub async fn scrub_pool(&self, pool: &PoolName) -> Result<Pool> {
        self.ask(Method::POST, &["v1", "pools", pool.as_str(), "scrub"], &()).await
    }

    /// `DELETE /v1/pools/{pool}/scrub`
    pub async fn stop_scrub(&self, pool: &PoolName) -> Result<()> {
        self.delete(&["v1", "pools", pool.as_str(), "scrub"]).await
    }

    /// `DELETE /v1/pools/{pool}`
    pub async fn delete_pool(&self, pool: &PoolName) -> Result<()> {
        self.delete(&["v1", "pools", pool.as_str()]).await
    }

    /// `GET /v1/volumes`: one page.
    pub async fn volumes(&self, filter: &VolumeFilter) -> Result<Page<Volume>> {
        self.page(&["v1", "volumes"], filter).await
    }

    /// All volumes that the filter lets through, page by page.
    pub async fn all_volumes(&self, mut filter: VolumeFilter) -> Result<Vec<Volume>> {
        let mut all = Vec::new();
        filter.limit.get_or_insert(1000);
        loop {
            let page = self.volumes(&filter).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// `GET /v1/volumes/{volume}`
    pub async fn volume(&self, volume: &VolumeRef) -> Result<Volume> {
        self.get(&["v1", "volumes", &volume.to_string()]).await
    }

    /// `POST /v1/volumes`
    pub async fn create_volume(&self, ask: &VolumeCreate) -> Result<Volume> {
        self.ask(Method::POST, &["v1", "volumes"], ask).await
    }

    /// `PATCH /v1/volumes/{volume}`
    pub async fn update_volume(&self, volume: &VolumeRef, ask: &VolumeUpdate) -> Result<Volume> {
        self.ask(Method::PATCH, &["v1", "volumes", &volume.to_string()], ask).await
    }

    /// `POST /v1/volumes/{volume}/unlock`
    pub async fn unlock_volume(&self, volume: &VolumeRef, key: &VolumeKey) -> Result<Volume> {
        self.ask(Method::POST, &["v1", "volumes", &volume.to_string(), "unlock"], key).await
    }

    /// `GET /v1/volumes/{volume}/key`
    pub async fn volume_key(&self, volume: &VolumeRef) -> Result<VolumeKey> {
        self.get(&["v1", "volumes", &volume.to_string(), "key"]).await
    }

    /// `DELETE /v1/volumes/{volume}`
    pub async fn delete_volume(&self, volume: &VolumeRef) -> Result<()> {
        self.delete(&["v1", "volumes", &volume.to_string()]).await
    }

    /// `DELETE /v1/volumes/{volume}?when=...`. Whether it is gone already: with [`When::Unused`] it may
    /// go later.
    pub async fn delete_volume_when(&self, volume: &VolumeRef, when: When) -> Result<bool> {
        self.delete_when(&["v1", "volumes", &volume.to_string()], when).await
    }

    /// `GET /v1/snapshots`: one page.
    pub async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Page<Snapshot>> {
        self.page(&["v1", "snapshots"], filter).await
    }

    /// All snapshots that the filter lets through, page by page.
    pub async fn all_snapshots(&self, mut filter: SnapshotFilter) -> Result<Vec<Snapshot>> {
        let mut all = Vec::new();
        filter.limit.get_or_insert(1000);
        loop {
            let page = self.snapshots(&filter).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// `GET /v1/snapshots/{snapshot}`
    pub async fn snapshot(&self, snapshot: &SnapshotRef) -> Result<Snapshot> {
        self.get(&["v1", "snapshots", &snapshot.to_string()]).await
    }

    /// `GET /v1/snapshots/{snapshot}/blocks`: one page.
    pub async fn snapshot_blocks(
        &self,
        snapshot: &SnapshotRef,
        filter: &BlockFilter,
    ) -> Result<SnapshotBlocks> {
        self.page(&["v1", "snapshots", &snapshot.to_string(), "blocks"], filter).await
    }

    /// `POST /v1/snapshots`
    pub async fn create_snapshot(&self, ask: &SnapshotCreate) -> Result<Snapshot> {
        self.ask(Method::POST, &["v1", "snapshots"], ask).await
    }

    /// `DELETE /v1/snapshots/{snapshot}?when=...`. Whether it is gone already.
    pub async fn delete_snapshot(&self, snapshot: &SnapshotRef, when: When) -> Result<bool> {
        self.delete_when(&["v1", "snapshots", &snapshot.to_string()], when).await
    }

    /// `POST /v1/snapshot-groups`
    pub async fn create_snapshot_group(&self, ask: &SnapshotGroupCreate) -> Result<SnapshotGroup> {
        self.ask(Method::POST, &["v1", "snapshot-groups"], ask).await
    }

    /// `GET /v1/snapshot-groups/{group}`
    pub async fn snapshot_group(&self, group: &SnapshotName) -> Result<SnapshotGroup> {
        self.get(&["v1", "snapshot-groups", group.as_str()]).await
    }

    /// `GET /v1/hosts`: one page.
    pub async fn hosts(&self, filter: &HostFilter) -> Result<Page<Host>> {
        self.page(&["v1", "hosts"], filter).await
    }

    /// All hosts, page by page.
    pub async fn all_hosts(&self) -> Result<Vec<Host>> {
        self.all(&["v1", "hosts"]).await
    }

    async fn all<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut filter = HostFilter { cursor: None, limit: Some(1000) };
        loop {
            let page: Page<T> = self.page(path, &filter).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// All zones, page by page.
    pub async fn all_zones(&self) -> Result<Vec<Zone>> {
        self.all(&["v1", "zones"]).await
    }

    /// `GET /v1/zones/{zone}`
    pub async fn zone(&self, zone: &HostName) -> Result<Zone> {
        self.get(&["v1", "zones", zone.as_str()]).await
    }

    /// `PUT /v1/zones/{zone}`
    pub async fn put_zone(&self, zone: &HostName, ask: &ZonePut) -> Result<Zone> {
        self.ask(Method::PUT, &["v1", "zones", zone.as_str()], ask).await
    }

    /// `DELETE /v1/zones/{zone}`
    pub async fn delete_zone(&self, zone: &HostName) -> Result<()> {
        self.delete(&["v1", "zones", zone.as_str()]).await
    }

    /// `GET /v1/tokens`
    pub async fn tokens(&self) -> Result<Vec<Token>> {
        Ok(self.get::<Page<Token>>(&["v1", "tokens"]).await?.items)
    }

    /// `PUT /v1/tokens/{token}`
    pub async fn put_token(&self, token: &TokenName, ask: &TokenPut) -> Result<MadeToken> {
        self.ask(Method::PUT, &["v1", "tokens", token.as_str()], ask).await
    }

    /// `DELETE /v1/tokens/{token}`
    pub async fn delete_token(&self, token: &TokenName) -> Result<()> {
        self.delete(&["v1", "tokens", token.as_str()]).await
    }

    /// `PUT /v1/hosts/{host}/tls`
    pub async fn tls_host(&self, host: &HostName, ask: &TlsPut) -> Result<Host> {
        self.ask(Method::PUT, &["v1", "hosts", host.as_str(), "tls"], ask).await
    }

    /// `DELETE /v1/hosts/{host}/tls`
    pub async fn no_tls_host(&self, host: &HostName) -> Result<()> {
        self.delete(&["v1", "hosts", host.as_str(), "tls"]).await
    }

    /// `PUT /v1/hosts/{host}/chap`
    pub async fn chap_host(&self, host: &HostName, ask: &ChapPut) -> Result<Host> {
        self.ask(Method::PUT, &["v1", "hosts", host.as_str(), "chap"], ask).await
    }

    /// `DELETE /v1/hosts/{host}/chap`
    pub async fn no_chap_host(&self, host: &HostName) -> Result<()> {
        self.delete(&["v1", "hosts", host.as_str(), "chap"]).await
    }

    /// `GET /v1/hosts/{host}`
    pub async fn host(&self, host: &HostName) -> Result<Host> {
        self.get(&["v1", "hosts", host.as_str()]).await
    }

    /// `PUT /v1/hosts/{host}`
    pub async fn put_host(&self, host: &HostName, ask: &HostPut) -> Result<Host> {
        self.ask(Method::PUT, &["v1", "hosts", host.as_str()], ask).await
    }

    /// `PUT /v1/hosts/{host}/authentication`
    pub async fn authenticate_host(&self, host: &HostName, ask: &AuthenticationPut) -> Result<Host> {
        self.ask(Method::PUT, &["v1", "hosts", host.as_str(), "authentication"], ask).await
    }

    /// `DELETE /v1/hosts/{host}/authentication`
    pub async fn trust_host(&self, host: &HostName) -> Result<()> {
        self.delete(&["v1", "hosts", host.as_str(), "authentication"]).await
    }

    /// `DELETE /v1/hosts/{host}`
    pub async fn delete_host(&self, host: &HostName) -> Result<()> {
        self.delete(&["v1", "hosts", host.as_str()]).await
    }

    /// `GET /v1/volumes/{volume}/attachments`
    pub async fn attachments(&self, volume: &VolumeRef) -> Result<Vec<Attachment>> {
        let path = ["v1", "volumes", &volume.to_string(), "attachments"];
        Ok(self.get::<Page<Attachment>>(&path).await?.items)
    }

    /// `GET /v1/volumes/{volume}/attachments/{host}`
    pub async fn attachment(&self, volume: &VolumeRef, host: &HostName) -> Result<Attachment> {
        self.get(&["v1", "volumes", &volume.to_string(), "attachments", host.as_str()]).await
    }

    /// `PUT /v1/volumes/{volume}/attachments/{host}`
    pub async fn attach(&self, volume: &VolumeRef, host: &HostName) -> Result<Attachment> {
        self.attach_as(volume, host, &AttachAs::default()).await
    }

    /// The same with what is to be said about it.
    pub async fn attach_as(&self, volume: &VolumeRef, host: &HostName, how: &AttachAs) -> Result<Attachment> {
        let path = ["v1", "volumes", &volume.to_string(), "attachments", host.as_str()];
        self.json(self.request_with(Method::PUT, &path, how)?).await
    }

    /// `DELETE /v1/volumes/{volume}/attachments/{host}`
    pub async fn detach(&self, volume: &VolumeRef, host: &HostName) -> Result<()> {
        self.delete(&["v1", "volumes", &volume.to_string(), "attachments", host.as_str()]).await
    }

    /// `GET /v1/orphans`: asks every pool, so it takes a moment.
    pub async fn orphans(&self) -> Result<Orphans> {
        self.get(&["v1", "orphans"]).await
    }

    /// `POST /v1/orphans/{orphan}/adopt`
    pub async fn adopt_orphan(&self, orphan: &OrphanId, ask: &OrphanAdopt) -> Result<Volume> {
        self.ask(Method::POST, &["v1", "orphans", orphan.as_str(), "adopt"], ask).await
    }

    /// `DELETE /v1/orphans/{orphan}`
    pub async fn remove_orphan(&self, orphan: &OrphanId) -> Result<()> {
        self.delete(&["v1", "orphans", orphan.as_str()]).await
    }

    /// `GET /v1/events`, from after the event `after`, or from now on. Ends with the first error until
    /// the daemon has answered once; from then on it reconnects where it stopped, for as long as it is
    /// read, and only an error that trying again can't help ends it.
    pub fn events(&self, after: Option<u64>) -> impl Stream<Item = Result<Event>> + Send + Unpin + use<> {
        Box::pin(events::stream(self.clone(), after))
    }

    // ---- how a call is made

    fn url(&self, path: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            // Names are checked, and escaped here all the same.
            Ok(mut segments) => drop(segments.pop_if_empty().extend(path)),
            Err(()) => return Err(Problem::new(ErrorKind::Invalid, "the URL cannot be a base")),
        }
        Ok(url)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            // reqwest marks the header as sensitive: it is left out of debug output.
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder> {
        Ok(self.bounded(self.calls.request(method, self.url(path)?)))
    }

    /// With the token, and a time after which neither this client nor the daemon goes on waiting.
    fn bounded(&self, request: RequestBuilder) -> RequestBuilder {
        let request = self.authorized(request).timeout(self.timeout);
        // Of the daemon a second less, so that its own words about what took too long arrive.
        match self.timeout.as_secs().saturating_sub(1) {
            0 => request,
            seconds => request.header("prefer", format!("wait={seconds}")),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        checked(request.send().await.map_err(transport)?).await
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let body = read(self.send(request).await?).await?;
        serde_json::from_slice(&body).map_err(|e| {
            Problem::new(ErrorKind::Internal, format!("the daemon's answer is not understood: {e}"))
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T> {
        self.json(self.request(Method::GET, path)?).await
    }

    async fn page<T: DeserializeOwned>(&self, path: &[&str], filter: &impl Serialize) -> Result<T> {
        self.json(self.request_with(Method::GET, path, filter)?).await
    }

    fn request_with(&self, method: Method, path: &[&str], query: &impl Serialize) -> Result<RequestBuilder> {
        let mut url = self.url(path)?;
        // A flat struct of strings, numbers and flags, so that its JSON is the list of parameters.
        let query = serde_json::to_value(query).unwrap_or_default();
        for (name, value) in query.as_object().into_iter().flatten() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            url.query_pairs_mut().append_pair(name, &text);
        }
        Ok(self.bounded(self.calls.request(method, url)))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        ask: &impl Serialize,
    ) -> Result<T> {
        self.json(self.request(method, path)?.json(ask)).await
    }

    /// 204: it is gone; 202: it will be.
    async fn delete_when(&self, path: &[&str], when: When) -> Result<bool> {
        let mut url = self.url(path)?;
        url.query_pairs_mut().append_pair("when", when.as_str());
        let request = self.bounded(self.calls.request(Method::DELETE, url));
        Ok(self.send(request).await?.status() != reqwest::StatusCode::ACCEPTED)
    }

    async fn delete(&self, path: &[&str]) -> Result<()> {
        self.send(self.request(Method::DELETE, path)?).await.map(drop)
    }
}

fn common() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        // The daemon redirects nowhere, and a proxy has no business with a token.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
}

fn base(tls: rustls::ClientConfig) -> reqwest::ClientBuilder {
    common().tls_backend_preconfigured(tls)
}

/// What happened on the way. The URL is left out: it says nothing that the caller doesn't know.
fn transport(e: reqwest::Error) -> Problem {
    let kind = if e.is_timeout() { ErrorKind::Deadline } else { ErrorKind::Unavailable };
    let e = e.without_url();
    let mut detail = e.to_string();
    let mut next = std::error::Error::source(&e);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !detail.ends_with(&text) {
            detail.push_str(": ");
            detail.push_str(&text);
        }
        next = cause.source();
    }
    Problem::new(kind, format!("the daemon cannot be reached: {detail}"))
}

async fn read(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Problem::new(ErrorKind::Internal, "the daemon's answer is too large"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An answer that is not a success is the daemon's problem, or, from something in between, one made up
/// from its status.
async fn checked(response: Response) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = read(response).await?;
    Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
        let kind = ErrorKind::ALL.into_iter().find(|k| k.http_status() == status.as_u16());
        Problem::new(
            kind.unwrap_or(ErrorKind::Unavailable),
            format!("an answer that is not the daemon's: {status}"),
        )
    }))
}
