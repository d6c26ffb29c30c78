//! `test/e2e/network/dual_stack.go`: Services of one family and of two, and the granular checks with the secondary one.

use crate::{networking, prelude::*};

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let create = vec![
        Title::new(
            "should create a single stack service with cluster ip from primary service range",
            |case| families(case, json!({"ipFamilyPolicy": null}), &[IpFamily::V4]),
        ),
        Title::new("should create service with ipv4 cluster ip", |case| {
            families(case, json!({"ipFamilyPolicy": null, "ipFamilies": ["IPv4"]}), &[IpFamily::V4])
        }),
        Title::new("should create service with ipv6 cluster ip", |case| {
            families(case, json!({"ipFamilyPolicy": null, "ipFamilies": ["IPv6"]}), &[IpFamily::V6])
        }),
        Title::new("should create service with ipv4,v6 cluster ip", |case| {
            let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]});
            families(case, spec, &[IpFamily::V4, IpFamily::V6])
        }),
        Title::new("should create service with ipv6,v4 cluster ip", |case| {
            let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]});
            families(case, spec, &[IpFamily::V6, IpFamily::V4])
        }),
    ];
    // Nodes, pods and Services are IPv4 first here.
    let secondary = networking::both_families().into_iter().map(Title::ipv6).collect();
    vec![
        Group::new("dual_stack.go", "[Feature:IPv6DualStack]", create),
        Group::new(
            "dual_stack.go",
            "[Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family [LinuxOnly]",
            secondary,
        ),
    ]
}

/// The Service gets an address of each of these families, in this order, and is served at each of them; each family is
/// there without the other.
async fn families(case: Case, mut spec: Value, wanted: &'static [IpFamily]) -> Result<()> {
    spec["type"] = "NodePort".into();
    let service = case.service("web", spec)?;
    let ips = service.cluster_ips()?;
    let in_order = ips.len() == wanted.len() && ips.iter().zip(wanted).all(|(ip, family)| family.has(*ip));
    ensure!(in_order, "cluster IPs {ips:?} instead of {wanted:?}");
    let backends = [case.backend("web", 0).await?, case.backend("web", 1).await?];
    let names = backends.each_ref().map(PodClient::name);
    let client = case.pod("client", 0).await?;
    let callers = [client.caller().clone(), case.host(0), case.outside(0)];
    for family in IpFamily::BOTH {
        let node = family.pick(case.node(0).addresses())?;
        let (tcp, udp) = (service.node(node, 80)?, service.node_udp(node, 81)?);
        let has = wanted.contains(&family);
        for caller in &callers {
            if has {
                let ip = family.pick(&ips)?;
                case.comes_to_reach(caller, SocketAddr::new(ip, 80), Protocol::Tcp, &names).await?;
                case.comes_to_reach(caller, SocketAddr::new(ip, 81), Protocol::Udp, &names).await?;
                case.comes_to_reach(caller, tcp, Protocol::Tcp, &names).await?;
                case.comes_to_reach(caller, udp, Protocol::Udp, &names).await?;
            } else {
                case.unreachable(caller, tcp, Protocol::Tcp).await?;
            }
        }
    }
    // Slices of one family are of no use to the other (S-04).
    if let [first, second] = wanted {
        let slices = case.api().values("endpointslices", Some(case.namespace()))?;
        let (first, second) = (first.pick(&ips)?, second.pick(&ips)?);
        service.patch(json!({"selector": null}))?;
        for slice in slices
            .iter()
            .filter(|slice| slice["addressType"] == if second.is_ipv6() { "IPv6" } else { "IPv4" })
        {
            let name = slice["metadata"]["name"].as_str().context("a slice without name")?;
            let now = lb_tests::apiserver::DeleteOptions::default();
            case.api().delete_value("endpointslices", case.namespace(), name, &now)?;
        }
        for caller in &callers {
            case.refuses(caller, SocketAddr::new(second, 81), Protocol::Udp).await?;
            case.reaches(caller, SocketAddr::new(first, 81), Protocol::Udp, &names).await?;
        }
    }
    Ok(())
}
