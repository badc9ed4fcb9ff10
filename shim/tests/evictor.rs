//! The evictor against an API server that has pods, claims and volumes, keeps preconditions, and can be watched.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use orlop_csi::evictor::{ANNOTATION, Evictor};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

#[derive(Default)]
struct Objects {
    pods: Vec<Value>,
    claims: BTreeMap<String, Value>,
    volumes: BTreeMap<String, Value>,
    deleted: Vec<String>,
    /// What watchers hear.
    events: Option<UnboundedReceiver<Result<String, Infallible>>>,
}

type Server = Arc<Mutex<Objects>>;

fn status(code: StatusCode, reason: &str) -> (StatusCode, Json<Value>) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason,
        "code": code.as_u16(),
    });
    (code, Json(body))
}

async fn pods(
    State(server): State<Server>,
    Query(query): Query<BTreeMap<String, String>>,
) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    let mut objects = server.lock().unwrap();
    if query.contains_key("watch") {
        // One watcher hears all; another one hears nothing until it gives up.
        return match objects.events.take() {
            Some(events) => Body::from_stream(UnboundedReceiverStream::new(events)).into_response(),
            None => Body::from_stream(futures_util::stream::pending::<Result<String, Infallible>>())
                .into_response(),
        };
    }
    let list = json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": objects.pods,
    });
    Json(list).into_response()
}

async fn claim(
    State(server): State<Server>,
    Path((_, name)): Path<(String, String)>,
) -> (StatusCode, Json<Value>) {
    match server.lock().unwrap().claims.get(&name) {
        Some(claim) => (StatusCode::OK, Json(claim.clone())),
        None => status(StatusCode::NOT_FOUND, "NotFound"),
    }
}

async fn delete(
    State(server): State<Server>,
    Path((_, name)): Path<(String, String)>,
    Json(options): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let mut objects = server.lock().unwrap();
    let Some(mut claim) = objects.claims.get(&name).cloned() else {
        return status(StatusCode::NOT_FOUND, "NotFound");
    };
    // Somebody is faster.
    if name == "data-changed-0" {
        claim["metadata"]["resourceVersion"] = json!("8");
    }
    for key in ["uid", "resourceVersion"] {
        if options["preconditions"][key] != claim["metadata"][key] {
            return status(StatusCode::CONFLICT, "Conflict");
        }
    }
    objects.deleted.push(name.clone());
    objects.claims.remove(&name);
    (StatusCode::OK, Json(claim))
}

async fn volume(State(server): State<Server>, Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    match server.lock().unwrap().volumes.get(&name) {
        Some(volume) => (StatusCode::OK, Json(volume.clone())),
        None => status(StatusCode::NOT_FOUND, "NotFound"),
    }
}

/// How a pod is out of the ordinary.
#[derive(Clone, Copy, PartialEq)]
enum Pod {
    EvictedByKubelet,
    EvictedByApi,
    Running,
    Failed,
    Preempted,
    OfDeployment,
}

impl Objects {
    /// A pod with one claim, `data-<name>`.
    fn add(&mut self, name: &str, pod: Pod, asked_by: &str, driver: &str) -> Value {
        let annotations = |who: &str| match asked_by == who {
            true => json!({ANNOTATION: "true"}),
            false => json!({ANNOTATION: "yes", "x": "true"}),
        };
        let claim = format!("data-{name}");
        let condition =
            |reason: &str| json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        let status = match pod {
            Pod::EvictedByKubelet | Pod::OfDeployment => json!({"phase": "Failed", "reason": "Evicted"}),
            Pod::EvictedByApi => {
                json!({"phase": "Running", "conditions": condition("EvictionByEvictionAPI")})
            }
            Pod::Preempted => json!({"phase": "Running", "conditions": condition("PreemptionByScheduler")}),
            Pod::Failed => json!({"phase": "Failed", "reason": "NodeLost"}),
            Pod::Running => json!({"phase": "Running"}),
        };
        let owner = if pod == Pod::OfDeployment { "ReplicaSet" } else { "StatefulSet" };
        let object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "annotations": annotations("pod"),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner, "name": "set", "uid": "u", "controller": true}],
            },
            "spec": {"containers": [], "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}},
                {"name": "tmp", "emptyDir": {}},
            ]},
            "status": status,
        });
        self.claims.insert(claim.clone(), json!({
            "kind": "PersistentVolumeClaim", "apiVersion": "v1",
            "metadata": {
                "name": claim, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": annotations("claim"),
            },
            "spec": {"volumeName": format!("pv-{name}")},
        }));
        self.volumes.insert(
            format!("pv-{name}"),
            json!({
                "kind": "PersistentVolume", "apiVersion": "v1", "metadata": {"name": format!("pv-{name}")},
                "spec": {"csi": {"driver": driver, "volumeHandle": "a/x"}},
            }),
        );
        object
    }
}

async fn start(objects: Objects) -> (Server, Evictor, UnboundedSender<Result<String, Infallible>>) {
    let server = Arc::new(Mutex::new(objects));
    let (tell, events) = unbounded_channel();
    server.lock().unwrap().events = Some(events);
    let router = Router::new()
        .route("/api/v1/pods", get(pods))
        .route("/api/v1/namespaces/{ns}/persistentvolumeclaims/{name}", get(claim).delete(delete))
        .route("/api/v1/persistentvolumes/{name}", get(volume))
        .with_state(server.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    (server, Evictor::with(client), tell)
}

async fn deleted(server: &Server, expected: usize) -> Vec<String> {
    for _ in 0..400 {
        if server.lock().unwrap().deleted.len() >= expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    // And no more.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut all = server.lock().unwrap().deleted.clone();
    all.sort();
    all
}

#[tokio::test]
async fn only_claims_that_are_asked_for_go() {
    const OURS: &str = "csi.orlop.dev";
    let mut objects = Objects::default();
    let mut pods = Vec::new();
    for (name, pod, asked_by, driver) in [
        ("kubelet-0", Pod::EvictedByKubelet, "pod", OURS),
        ("api-0", Pod::EvictedByApi, "claim", OURS),
        ("nobody-0", Pod::EvictedByKubelet, "nobody", OURS),
        ("running-0", Pod::Running, "pod", OURS),
        ("failed-0", Pod::Failed, "pod", OURS),
        ("preempted-0", Pod::Preempted, "pod", OURS),
        ("deployment-0", Pod::OfDeployment, "pod", OURS),
        ("other-0", Pod::EvictedByKubelet, "pod", "csi.example.com"),
        ("changed-0", Pod::EvictedByKubelet, "pod", OURS),
        ("unbound-0", Pod::EvictedByKubelet, "pod", OURS),
        ("going-0", Pod::EvictedByKubelet, "pod", OURS),
        ("again-0", Pod::EvictedByKubelet, "pod", OURS),
    ] {
        let object = objects.add(name, pod, asked_by, driver);
        pods.push(object);
    }
    objects.volumes.remove("pv-unbound-0");
    // Its claim has gone, and what has the name now came for the pod after it.
    objects.claims.get_mut("data-again-0").unwrap()["metadata"]["creationTimestamp"] =
        json!("2026-01-01T00:01:00Z");
    objects.claims.get_mut("data-going-0").unwrap()["metadata"]["deletionTimestamp"] =
        json!("2026-01-01T00:00:00Z");
    // One that several pods share is no pod's own.
    let mut shared = objects.claims["data-kubelet-0"].clone();
    shared["metadata"]["name"] = json!("shared");
    objects.claims.insert("shared".into(), shared);
    objects.pods = pods;
    let later = objects.add("later-0", Pod::Running, "pod", OURS);
    objects.pods.push(later.clone());

    let (server, evictor, tell) = start(objects).await;
    let running = tokio::spawn(evictor.run());
    assert_eq!(deleted(&server, 2).await, ["data-api-0", "data-kubelet-0"]);
    let mut evicted = later;
    evicted["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    evicted["metadata"]["resourceVersion"] = json!("2");
    let event = json!({"type": "MODIFIED", "object": evicted});
    tell.send(Ok(format!("{event}\n"))).unwrap();
    // Told of it twice it is done once.
    tell.send(Ok(format!("{event}\n"))).unwrap();
    assert_eq!(deleted(&server, 3).await, ["data-api-0", "data-kubelet-0", "data-later-0"]);
    assert!(!running.is_finished());
    running.abort();
}
