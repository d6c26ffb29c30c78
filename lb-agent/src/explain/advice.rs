//! What to do about a packet that did not arrive.

use lb_common::reason::Reason;

/// What a person can do about a reason. `service` is `namespace/name`, where one was found.
pub(super) fn about(reason: Reason, service: Option<&str>) -> String {
    let slices = || match service.and_then(|service| service.split_once('/')) {
        Some((namespace, name)) => {
            let name = name.split(':').next().unwrap_or(name);
            format!(
                "`kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name} -o yaml` shows them"
            )
        }
        None => "look at its EndpointSlices".to_owned(),
    };
    match reason {
        Reason::NoEndpoint => format!(
            "no endpoint of the Service is ready, or none matches its selector: {}, their conditions and their ports",
            slices()
        ),
        Reason::NoLocalEndpoint => format!(
            "the Service's traffic policy is Local, and none of its endpoints is on this node: {}; send clients to a \
             node that has one, or set the policy to Cluster",
            slices()
        ),
        Reason::UnknownPort => "connect to one of the Service's ports (`lb-agent services` lists them), with its \
                                protocol"
            .to_owned(),
        Reason::UnallocatedAddress => "the address lies in the range of cluster IPs, and no Service has it (any more): \
                                       is it from an old answer of DNS?"
            .to_owned(),
        Reason::NotProxied => "Services carry TCP, UDP and SCTP. Cluster IPs with an endpoint answer pings when lb-agent \
                               runs with --echo-reply; test with a connection instead (curl, nc)"
            .to_owned(),
        Reason::SourceNotAllowed => "add the client's range to the Service's loadBalancerSourceRanges, or connect to its \
                                     cluster IP"
            .to_owned(),
        Reason::SpoofedSource => "nobody in order sends from that address to a Service: is an address in use twice, or \
                                  somebody forging?"
            .to_owned(),
        Reason::NoMasqueradeAddress => "the node has no address of this family at the device that the packet leaves by: \
                                        give it one, or name it with --node-ip"
            .to_owned(),
        Reason::NoFreePort => "very many connections to one endpoint are open through this node: widen \
                               --masquerade-ports, or run more endpoints"
            .to_owned(),
        Reason::ConnectionTableFull => "raise --max-connections (after `lb-agent cleanup`, because tables keep their \
                                        size), and find out who opens so many: `lb-agent services` counts them"
            .to_owned(),
        Reason::ResetWithoutFlow => "the connection is not known here: it ended, or began through another node".to_owned(),
        Reason::TableInconsistent => "the tables contradict themselves. Restart the agent, which writes them anew, and \
                                      report it with `lb-agent support-bundle`"
            .to_owned(),
        Reason::RewriteFailed | Reason::RefusalFailed => "the kernel refused to change the packet: is its memory short?"
            .to_owned(),
        Reason::RefusalForbidden
        | Reason::Fragment
        | Reason::FragmentsFull
        | Reason::Malformed
        | Reason::UnrelatedError => reason.meaning().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_advice_and_a_missing_endpoint_the_command_that_shows_why() {
        for reason in Reason::ALL {
            assert!(about(reason, None).len() > 20, "{reason:?}");
        }
        let text = about(Reason::NoEndpoint, Some("shop/web:http"));
        assert!(text.contains("-n shop get endpointslices -l kubernetes.io/service-name=web -o"), "{text}");
    }
}
