//! Answers for a person's eyes, and for Graphviz. Pure.

use std::collections::BTreeMap;

use cni_types::table;

use super::view::{AttachmentView, LinkView, NetworkView, PolicyView, View};

/// One line for each network.
pub(super) fn list(view: &View) -> String {
    let rows: Vec<[String; 4]> = view
        .networks
        .iter()
        .map(|network| {
            let bridge = network.bridge.as_ref();
            [
                network.name.clone(),
                bridge.map_or("-", |bridge| bridge.name.as_str()).to_owned(),
                network.gateway.as_ref().or(bridge).map_or_else(String::new, |link| link.addresses.join(",")),
                network.attachments.len().to_string(),
            ]
        })
        .collect();
    table::columns(["NETWORK", "BRIDGE", "ADDRESSES", "ATTACHMENTS"], &rows)
}

/// A network as a tree.
pub(super) fn show(network: &NetworkView) -> String {
    let mut text = format!("network {}\n", network.name);
    match &network.bridge {
        Some(bridge) => text += &link("bridge", bridge),
        None => text += "no bridge\n",
    }
    if let Some(gateway) = &network.gateway {
        text += &link("gateway", gateway);
    }
    text += &format!("policy {}\n", network.ingress_policy);
    for obstacle in &network.obstacles {
        text += &format!("! forwarded packets are dropped by {obstacle}\n");
    }
    for (index, attachment) in network.attachments.iter().enumerate() {
        let last = index + 1 == network.attachments.len();
        let (branch, below) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        text +=
            &format!("{branch} {} {} ({})\n", attachment.container_id, attachment.ifname, attachment.state);
        for line in details(attachment) {
            text += &format!("{below}   {line}\n");
        }
    }
    text
}

fn link(role: &str, LinkView { name, mac, mtu, up, addresses }: &LinkView) -> String {
    let state = if *up { "up" } else { "down" };
    let mac = mac.as_deref().unwrap_or("-");
    let mut text = format!("{role} {name} ({state}, mac {mac}, mtu {mtu})\n");
    for address in addresses {
        text += &format!("  address {address}\n");
    }
    text
}

fn details(attachment: &AttachmentView) -> Vec<String> {
    let mut lines = vec![format!("host veth {}", attachment.host_veth)];
    lines.extend(attachment.netns.as_ref().map(|path| format!("namespace {}", path.display())));
    lines.extend(attachment.addresses.iter().map(|address| format!("address {address}")));
    lines.extend(attachment.mac.as_ref().map(|mac| format!("mac {mac}")));
    lines.push(format!("rules: {}", attachment.policy.map_or_else(|| "none".to_owned(), rules)));
    if !attachment.names.is_empty() {
        lines.push(format!("names {}", attachment.names.join(", ")));
    }
    lines
}

/// What the rules of an attachment do, by the keys that ask for it.
fn rules(policy: PolicyView) -> String {
    let PolicyView { ip_masq, ip_masq_backend, ingress_policy, accept_forward, macspoofchk, ra_guard } =
        policy;
    let masquerade = if ip_masq_backend == Some("iptables") { "ipMasq by iptables" } else { "ipMasq" };
    let ingress = format!("ingressPolicy {ingress_policy}");
    let words = [
        (ip_masq, masquerade),
        (ingress_policy != "open", ingress.as_str()),
        (accept_forward, "acceptForward"),
        (macspoofchk, "macspoofchk"),
        (ra_guard, "router advertisements dropped"),
    ];
    let words: Vec<&str> = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect();
    words.join(", ")
}

/// Networks as a graph in the DOT language. Those on one bridge meet there, and those of one container in it.
pub(super) fn dot(networks: &[NetworkView]) -> String {
    let name = match networks {
        [network] => &network.name,
        _ => "networks",
    };
    let mut text = format!("graph {} {{\n  node [shape=box];\n", quoted(name));
    text += "  subgraph cluster_host {\n    label=host;\n";
    let mut wires = String::new();
    let mut containers: BTreeMap<&str, String> = BTreeMap::new();
    for network in networks {
        let bridge = network.bridge.as_ref().map(|bridge| (quoted(&bridge.name), bridge));
        if let Some((node, bridge)) = &bridge {
            text += &format!("    {node} [label={}];\n", quoted(&lines(&bridge.name, &bridge.addresses)));
            if let Some(gateway) = &network.gateway {
                let (end, label) = (quoted(&gateway.name), lines(&gateway.name, &gateway.addresses));
                text += &format!("    {end} [label={}];\n", quoted(&label));
                wires += &format!("  {end} -- {node};\n");
            }
        }
        for attachment in &network.attachments {
            let host_veth = quoted(&attachment.host_veth);
            let end = quoted(&format!("{} {}", attachment.container_id, attachment.ifname));
            text += &format!("    {host_veth} [label={host_veth}];\n");
            let label = lines(&attachment.ifname, &[&attachment.addresses[..], &attachment.names].concat());
            let ends = containers.entry(&attachment.container_id).or_default();
            *ends += &format!("    {end} [label={}];\n", quoted(&label));
            if let Some((node, _)) = &bridge {
                wires += &format!("  {node} -- {host_veth};\n");
            }
            wires += &format!("  {host_veth} -- {end};\n");
        }
    }
    text += "  }\n";
    for (index, (container_id, ends)) in containers.into_iter().enumerate() {
        text += &format!("  subgraph cluster_{index} {{\n    label={};\n{ends}  }}\n", quoted(container_id));
    }
    text + &wires + "}\n"
}

fn lines(first: &str, rest: &[String]) -> String {
    std::iter::once(first).chain(rest.iter().map(String::as_str)).collect::<Vec<_>>().join("\n")
}

/// A text as DOT quotes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkView {
        NetworkView {
            name: "testnet".into(),
            bridge: Some(LinkView {
                name: "br0".into(),
                mac: Some("02:00:00:00:00:01".into()),
                mtu: 1500,
                up: true,
                addresses: vec!["172.20.0.1/16".into()],
            }),
            gateway: None,
            ingress_policy: "same-bridge",
            obstacles: vec!["ip filter FORWARD: policy drop".into()],
            attachments: vec![AttachmentView {
                container_id: "c1".into(),
                ifname: "eth0".into(),
                host_veth: "veth0123456789a".into(),
                netns: Some("/run/netns/c1".into()),
                mac: Some("02:00:00:00:00:02".into()),
                addresses: vec!["172.20.0.2/16".into()],
                state: "up",
                rules: true,
                policy: Some(PolicyView {
                    ip_masq: true,
                    ip_masq_backend: Some("nftables"),
                    ingress_policy: "same-bridge",
                    accept_forward: false,
                    macspoofchk: false,
                    ra_guard: true,
                }),
                names: vec!["centos-1".into(), "web".into()],
            }],
        }
    }

    #[test]
    fn a_network_is_shown_as_a_tree() {
        assert_eq!(
            show(&network()),
            "network testnet\n\
             bridge br0 (up, mac 02:00:00:00:00:01, mtu 1500)\n\
             \x20 address 172.20.0.1/16\n\
             policy same-bridge\n\
             ! forwarded packets are dropped by ip filter FORWARD: policy drop\n\
             └─ c1 eth0 (up)\n\
             \x20    host veth veth0123456789a\n\
             \x20    namespace /run/netns/c1\n\
             \x20    address 172.20.0.2/16\n\
             \x20    mac 02:00:00:00:00:02\n\
             \x20    rules: ipMasq, ingressPolicy same-bridge, router advertisements dropped\n\
             \x20    names centos-1, web\n"
        );
    }

    #[test]
    fn a_list_has_aligned_columns() {
        assert_eq!(
            list(&View { networks: vec![network()] }),
            "NETWORK  BRIDGE  ADDRESSES      ATTACHMENTS\n\
             testnet  br0     172.20.0.1/16  1\n"
        );
    }

    #[test]
    fn the_gateway_of_a_vlan_is_shown_with_its_addresses() {
        let mut network = network();
        let bridge = network.bridge.as_mut().unwrap();
        let addresses = std::mem::take(&mut bridge.addresses);
        network.gateway = Some(LinkView { name: "br0.100".into(), addresses, ..bridge.clone() });
        let text = show(&network);
        let gateway =
            "mtu 1500)\ngateway br0.100 (up, mac 02:00:00:00:00:01, mtu 1500)\n  address 172.20.0.1/16\n";
        assert!(text.contains(gateway), "{text}");
        let graph = dot(std::slice::from_ref(&network));
        assert!(graph.contains("\"br0.100\" [label=\"br0.100\\n172.20.0.1/16\"];"), "{graph}");
        assert!(graph.contains("\"br0.100\" -- \"br0\";"), "{graph}");
        assert!(list(&View { networks: vec![network] }).contains(" br0     172.20.0.1/16  1\n"));
    }

    #[test]
    fn a_graph_names_bridge_ports_and_containers() {
        let text = dot(&[network()]);
        assert!(text.contains("\"br0\" [label=\"br0\\n172.20.0.1/16\"];"), "{text}");
        assert!(text.contains("\"br0\" -- \"veth0123456789a\";"), "{text}");
        assert!(text.contains("\"veth0123456789a\" -- \"c1 eth0\";"), "{text}");
        assert!(text.contains("\"c1 eth0\" [label=\"eth0\\n172.20.0.2/16\\ncentos-1\\nweb\"];"), "{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn a_container_on_two_networks_is_drawn_once() {
        let mut other = network();
        other.name = "other".into();
        other.attachments[0].ifname = "eth1".into();
        other.attachments[0].host_veth = "vethfedcba98765".into();
        let text = dot(&[network(), other]);
        assert!(text.starts_with("graph \"networks\" {"), "{text}");
        assert_eq!(text.matches("label=\"c1\";").count(), 1, "{text}");
        for end in ["\"veth0123456789a\" -- \"c1 eth0\";", "\"vethfedcba98765\" -- \"c1 eth1\";"] {
            assert_eq!(text.matches(end).count(), 1, "{text}");
        }
    }
}
