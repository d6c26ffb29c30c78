//! API servers through the `kube` client: objects, watchers of both kinds, with `KUBEBUILDER_ASSETS` set those of a real one;
//! the faults of the lab's own.

use std::{net::TcpListener, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod, Service},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};
use lb_tests::apiserver::{ApiServer, ControlPlane, Options};
use serde_json::{Value, json};
use tokio::time::timeout;

fn server(options: Options) -> ApiServer {
    ApiServer::start(TcpListener::bind("127.0.0.1:0").unwrap(), options).unwrap()
}

/// The lab's server, or with `KUBEBUILDER_ASSETS` set a real one.
fn either() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

async fn client(server: &ApiServer) -> Client {
    client_with(&server.kubeconfig(&server.url())).await
}

async fn client_of(server: &ControlPlane) -> Client {
    client_with(&server.kubeconfig(&server.url())).await
}

async fn client_with(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

/// The next event within a second.
async fn next<T>(events: &mut (impl Stream<Item = T> + Unpin)) -> T {
    timeout(Duration::from_secs(10), events.next())
        .await
        .expect("an event in time")
        .expect("a watch that goes on")
}

/// Names of applied objects until the watcher says that all initial ones were there.
async fn initial<E: std::fmt::Debug>(
    events: &mut (impl Stream<Item = Result<watcher::Event<Service>, E>> + Unpin),
) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        match next(events).await {
            Ok(watcher::Event::Init) => names.clear(),
            Ok(watcher::Event::InitApply(object)) => names.push(object.name_any()),
            Ok(watcher::Event::InitDone) => return names,
            Ok(other) => panic!("{other:?} before the initial list was complete"),
            Err(_) => {}
        }
    }
}

async fn applied<E: std::fmt::Debug>(
    events: &mut (impl Stream<Item = Result<watcher::Event<Service>, E>> + Unpin),
) -> Service {
    match next(events).await.unwrap() {
        watcher::Event::Apply(object) => object,
        other => panic!("{other:?} instead of an applied object"),
    }
}

#[tokio::test]
async fn objects_live_and_die() {
    let server = either();
    let client = client_of(&server).await;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let new: Service = serde_json::from_value(service("order")).unwrap();

    let mut created = services.create(&PostParams::default(), &new).await.unwrap();
    let spec = created.spec.clone().unwrap();
    assert!(spec.cluster_ip.as_deref().is_some_and(|address| address.starts_with("10.")), "{spec:?}");
    assert_eq!(spec.session_affinity.as_deref(), Some("None"));
    assert_eq!(code(&services.create(&PostParams::default(), &new).await.unwrap_err()), 409);

    created.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let updated = services.replace("order", &PostParams::default(), &created).await.unwrap();
    assert_eq!(updated.labels()["a"], "b");
    // The version of before is a conflict.
    assert_eq!(code(&services.replace("order", &PostParams::default(), &created).await.unwrap_err()), 409);

    let patch = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 81}]}});
    let patched = services.patch("order", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(patched.spec.unwrap().ports.unwrap()[0].port, 81);
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    let patched =
        services.patch_status("order", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let ingress = patched.status.unwrap().load_balancer.unwrap().ingress.unwrap();
    assert_eq!(ingress[0].ip_mode.as_deref(), Some("VIP"));

    let applied = services
        .patch("payment", &PatchParams::apply("test"), &Patch::Apply(&service("payment")))
        .await
        .unwrap();
    assert_eq!(applied.name_any(), "payment");
    let selected = services.list(&ListParams::default().labels("a=b")).await.unwrap();
    assert_eq!(selected.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["order"]);
    let found = services.list(&ListParams::default().fields("metadata.name!=order")).await.unwrap();
    assert_eq!(found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["kubernetes", "payment"]);

    let gone = services.delete("order", &DeleteParams::default()).await.unwrap();
    assert_eq!(gone.left().map(|service| service.name_any()).as_deref(), Some("order"));
    assert_eq!(code(&services.get("order").await.unwrap_err()), 404);
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let groups = client.list_api_groups().await.unwrap();
    assert!(groups.groups.iter().any(|group| group.name == "discovery.k8s.io"));
}

#[tokio::test]
async fn pods_are_deleted_gracefully_and_deployments_scaled() {
    let server = either();
    let client = client_of(&server).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "a-", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "a"}]},
    });
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let name = pod.name_any();
    let terminating = pods.delete(&name, &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(terminating.metadata.deletion_grace_period_seconds, Some(30));
    assert!(pods.get(&name).await.unwrap().metadata.deletion_timestamp.is_some());
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(pods.get_opt(&name).await.unwrap().is_none());

    let deployments: Api<Deployment> = Api::namespaced(client, "default");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "a"}]},
        }},
    });
    let made = deployments
        .create(&PostParams::default(), &serde_json::from_value(deployment).unwrap())
        .await
        .unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let scale = json!({"spec": {"replicas": 5}});
    deployments.patch_scale("web", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
    assert_eq!(deployments.get_scale("web").await.unwrap().spec.unwrap().replicas, Some(5));
    assert_eq!(deployments.get("web").await.unwrap().metadata.generation, Some(2));
}

/// A real server leaves that to a controller.
#[tokio::test]
async fn what_is_in_a_namespace_goes_with_it() {
    let server = server(Options::default());
    let namespaces: Api<Namespace> = Api::all(client(&server).await);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    let inside = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "gone"},
        "spec": {"ports": [{"port": 1}]},
    });
    server.api().create(&inside).unwrap();
    namespaces.delete("gone", &DeleteParams::default()).await.unwrap();
    assert!(server.api().get::<Service>("gone", "x").is_err(), "what is in a namespace goes with it");
    assert!(namespaces.get_opt("gone").await.unwrap().is_none());
    assert_eq!(server.api().create(&inside).unwrap_err().code, 404);
}

#[tokio::test]
async fn both_kinds_of_watchers_follow() {
    for streaming in [false, true] {
        let server = either();
        server.api().create(&service("order")).unwrap();
        let services: Api<Service> = Api::all(client_of(&server).await);
        let config = watcher::Config::default();
        let config = if streaming { config.streaming_lists() } else { config };
        let events = watcher(services, config);
        pin_mut!(events);
        assert_eq!(initial(&mut events).await, ["kubernetes", "order"], "streaming: {streaming}");
        server.api().create(&service("payment")).unwrap();
        assert_eq!(applied(&mut events).await.name_any(), "payment");
        server.api().delete::<Service>("default", "order").unwrap();
        assert!(
            matches!(next(&mut events).await.unwrap(), watcher::Event::Delete(it) if it.name_any() == "order")
        );
        if server.is_real() {
            continue;
        }
        let server = server.own();
        let streamed = server.requests().iter().any(|request| request.contains("sendInitialEvents=true"));
        assert_eq!(streamed, streaming, "{:?}", server.requests());
    }
}

#[tokio::test]
async fn objects_move_in_and_out_of_a_selection() {
    let server = either();
    server.api().create(&service("order")).unwrap();
    let services: Api<Service> = Api::all(client_of(&server).await);
    let events = watcher(services, watcher::Config::default().labels("!hidden,!component"));
    pin_mut!(events);
    assert_eq!(initial(&mut events).await, ["order"]);
    let hide = |value: Value| json!({"metadata": {"labels": {"hidden": value}}});
    server.api().patch::<Service>("default", "order", &hide(json!("yes"))).unwrap();
    assert!(matches!(next(&mut events).await.unwrap(), watcher::Event::Delete(_)));
    server.api().patch::<Service>("default", "order", &hide(Value::Null)).unwrap();
    assert_eq!(applied(&mut events).await.name_any(), "order");
}

#[tokio::test]
async fn watchers_survive_what_the_server_does() {
    let server = server(Options { bookmark_interval: Duration::from_millis(20), ..Options::default() });
    let services: Api<Service> = Api::all(client(&server).await);
    let backoff = || watcher::DefaultBackoff::default();
    let events =
        kube::runtime::WatchStreamExt::backoff(watcher(services, watcher::Config::default()), backoff());
    pin_mut!(events);
    assert_eq!(initial(&mut events).await, ["kubernetes"]);

    // A watch broken in mid-line goes on from where it was: nothing is lost, nothing listed again.
    server.break_watches();
    server.api().create(&service("one")).unwrap();
    let seen = loop {
        match next(&mut events).await {
            Ok(watcher::Event::Apply(object)) => break object,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    };
    assert_eq!(seen.name_any(), "one");

    // Away for a while, and everything forgotten meanwhile: 410 Gone leads to a new list.
    server.pause();
    server.api().create(&service("two")).unwrap();
    server.api().create(&service("three")).unwrap();
    server.compact();
    server.fail_next(1, 503);
    server.resume();
    assert_eq!(initial(&mut events).await, ["kubernetes", "one", "three", "two"]);
    assert!(server.oldest_version() > 0);

    // Authentication fails, then works again.
    server.accept_token(None);
    server.break_watches();
    let refused = loop {
        if let Err(error) = next(&mut events).await
            && format!("{error:?}").contains("Unauthorized")
        {
            break true;
        }
    };
    assert!(refused);
    server.accept_token(Some(server.token()));
    server.api().create(&service("four")).unwrap();
    let seen = loop {
        match next(&mut events).await {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))
                if object.name_any() == "four" =>
            {
                break true;
            }
            _ => {}
        }
    };
    assert!(seen);
}

#[tokio::test]
async fn pages_are_of_one_moment_and_tokens_expire() {
    let server = server(Options::default());
    for number in 0..5 {
        server.api().create(&service(&format!("s{number}"))).unwrap();
    }
    let services: Api<Service> = Api::namespaced(client(&server).await, "default");
    let names =
        |list: &kube::core::ObjectList<Service>| list.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    let first = services.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(names(&first), ["kubernetes", "s0", "s1"]);
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    let token = first.metadata.continue_.clone().unwrap();
    // What changes between the pages does not change them.
    server.api().delete::<Service>("default", "s2").unwrap();
    server.api().create(&service("s9")).unwrap();
    let rest = services.list(&ListParams::default().limit(10).continue_token(&token)).await.unwrap();
    assert_eq!(names(&rest), ["s2", "s3", "s4"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);

    server.compact();
    let expired = services.list(&ListParams::default().limit(10).continue_token(&token)).await.unwrap_err();
    let kube::Error::Api(status) = expired else { panic!("{expired}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    let token = status.metadata.and_then(|it| it.continue_).expect("a token to go on with");
    let rest = services.list(&ListParams::default().limit(10).continue_token(&token)).await.unwrap();
    assert_eq!(names(&rest), ["s3", "s4", "s9"]);
}

#[tokio::test]
async fn an_older_server_has_no_streaming_lists() {
    let server = server(Options { streaming_lists: false, ..Options::default() });
    let services: Api<Service> = Api::all(client(&server).await);
    let events = watcher(services, watcher::Config::default().streaming_lists());
    pin_mut!(events);
    let error = next(&mut events).await;
    let error = match error {
        Ok(watcher::Event::Init) => next(&mut events).await.unwrap_err(),
        other => other.unwrap_err(),
    };
    assert!(format!("{error:?}").contains("sendInitialEvents is forbidden"), "{error:?}");
    server.set_streaming_lists(true);
    assert_eq!(initial(&mut events).await, ["kubernetes"]);
}

#[tokio::test]
async fn forbidden_unauthorized_and_slow() {
    let server = server(Options::default());
    let services: Api<Service> = Api::all(client(&server).await);
    server.forbid(&["services"]);
    let error = services.list(&ListParams::default()).await.unwrap_err();
    assert_eq!(code(&error), 403);
    assert!(error.to_string().contains("cannot list resource \"services\""), "{error}");
    server.forbid(&[]);
    server.accept_token(Some("another"));
    assert_eq!(code(&services.list(&ListParams::default()).await.unwrap_err()), 401);
    server.accept_token(Some(server.token()));
    server.slow_down(Duration::from_millis(200));
    let begun = std::time::Instant::now();
    services.list(&ListParams::default()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn plain_http_when_asked() {
    let server = server(Options { tls: false, ..Options::default() });
    assert!(server.url().starts_with("http://"));
    let services: Api<Service> = Api::all(client(&server).await);
    let stream = services.watch(&kube::api::WatchParams::default().timeout(1), "0").await.unwrap();
    let events: Vec<_> = stream.try_collect().await.unwrap();
    // One object, a bookmark before the end, and a clean end after the timeout.
    assert!(
        matches!(&events[..], [kube::core::WatchEvent::Added(_), kube::core::WatchEvent::Bookmark(_)]),
        "{events:?}"
    );
}
