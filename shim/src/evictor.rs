//! Deletes the claims of pods that were evicted, where somebody has asked for that: a pod of a StatefulSet whose volume is on an
//! appliance that only some nodes reach can start elsewhere then, with an empty volume.
//!
//! **A claim that is deleted takes its data with it**, unless its class retains volumes. So all of these must hold: the pod was
//! evicted (by kubelet, or through the eviction API), it is a StatefulSet's, the claim is one that the StatefulSet made for
//! this very pod, pod or claim carry the annotation with the value `true`, and the claim's volume is of this driver. The
//! claim that was looked at is the one that is deleted: its uid and its version are preconditions.

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};

use crate::DRIVER;

/// What asks for it, on a pod or a claim.
pub const ANNOTATION: &str = "csi.orlop.dev/delete-claim-on-eviction";

/// What came of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is being deleted, by this.
    Deleted,
    /// Nobody has asked for it.
    NotAsked,
    /// Its volume is another driver's, or it has none.
    NotOurs,
    /// It is gone, is going, or has changed since it was looked at.
    Gone,
}

/// Whether a pod was evicted: not deleted, not finished.
fn is_evicted(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let by_kubelet = status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some("Evicted");
    let by_api = status.conditions.iter().flatten().any(|c| {
        c.type_ == "DisruptionTarget"
            && c.status == "True"
            && c.reason.as_deref() == Some("EvictionByEvictionAPI")
    });
    by_kubelet || by_api
}

/// The claims that a StatefulSet has made for this very pod: `<template>-<pod>`.
fn own_claims(pod: &Pod) -> Vec<String> {
    let owners = pod.metadata.owner_references.iter().flatten();
    let of_set = owners
        .into_iter()
        .any(|o| o.controller == Some(true) && o.kind == "StatefulSet" && o.api_version.starts_with("apps/"));
    let (true, Some(name), Some(spec)) = (of_set, &pod.metadata.name, &pod.spec) else { return Vec::new() };
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter_map(|v| {
            let claim = &v.persistent_volume_claim.as_ref()?.claim_name;
            (*claim == format!("{}-{name}", v.name)).then(|| claim.clone())
        })
        .collect()
}

fn asks(of: &ObjectMeta) -> bool {
    of.annotations.as_ref().and_then(|all| all.get(ANNOTATION)).is_some_and(|value| value == "true")
}

/// See the module.
pub struct Evictor {
    client: Client,
}

impl Evictor {
    /// Where this runs: by the service account of its pod.
    pub async fn of_cluster() -> Result<Self, kube::Error> {
        Ok(Self::with(Client::try_default().await?))
    }

    /// Of a cluster that is reached so.
    pub fn with(client: Client) -> Self {
        Self { client }
    }

    /// Watches, until it can't any more. What fails is tried again when the pod changes, or all are listed again.
    pub async fn run(self) -> Result<(), watcher::Error> {
        let pods = watcher(Api::<Pod>::all(self.client.clone()), watcher::Config::default());
        let mut changed = std::pin::pin!(pods.default_backoff().applied_objects());
        loop {
            match changed.try_next().await {
                Ok(Some(pod)) => self.look_at(&pod).await,
                Ok(None) => return Ok(()),
                // It is watched again, a while later.
                Err(error) => tracing::warn!(%error, "pods can't be watched"),
            }
        }
    }

    /// Deletes what is to be deleted of one pod.
    pub async fn look_at(&self, pod: &Pod) {
        if !is_evicted(pod) {
            return;
        }
        let (space, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let (Some(namespace), Some(pod_name)) = (space, name) else { return };
        for claim in own_claims(pod) {
            match self.consider(namespace, &claim, pod).await {
                Ok(Outcome::Deleted) => {
                    tracing::warn!(
                        namespace,
                        pod = pod_name,
                        claim,
                        "the pod was evicted: its claim is deleted, as asked"
                    )
                }
                Ok(outcome) => tracing::debug!(namespace, pod = pod_name, claim, ?outcome, "the claim stays"),
                Err(error) => {
                    tracing::error!(namespace, pod = pod_name, claim, %error, "the claim could not be deleted")
                }
            }
        }
    }

    /// Deletes a claim if all that must hold does.
    async fn consider(&self, namespace: &str, name: &str, pod: &Pod) -> Result<Outcome, kube::Error> {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        let Some(claim) = claims.get_opt(name).await? else { return Ok(Outcome::Gone) };
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Gone);
        }
        if !asks(&pod.metadata) && !asks(&claim.metadata) {
            return Ok(Outcome::NotAsked);
        }
        // A claim has its name from its pod, and so has the one that came in its place: it is younger than this pod, and another's.
        if claim.metadata.creation_timestamp > pod.metadata.creation_timestamp {
            return Ok(Outcome::NotOurs);
        }
        let Some(volume) =
            claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty())
        else {
            return Ok(Outcome::NotOurs);
        };
        let volume = Api::<PersistentVolume>::all(self.client.clone()).get_opt(volume).await?;
        let driver = volume.and_then(|v| Some(v.spec?.csi?.driver));
        if driver.as_deref() != Some(DRIVER) {
            return Ok(Outcome::NotOurs);
        }
        let preconditions = Preconditions {
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match claims.delete(name, &params).await {
            Ok(_) => Ok(Outcome::Deleted),
            Err(kube::Error::Api(e)) if matches!(e.code, 404 | 409) => Ok(Outcome::Gone),
            Err(e) => Err(e),
        }
    }
}
