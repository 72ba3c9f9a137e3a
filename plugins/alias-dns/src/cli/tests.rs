use serde_json::Value;

use super::*;

fn records(directory: &tempfile::TempDir) -> StateDir {
    let state = StateDir::at(directory.path());
    let store = Store::new(&state);
    for text in [
        r#"{"network": "testnet", "containerID": "ad9e1859bf3ac0ffee", "ifname": "eth0", "joined": 1, "bridge": "br0",
            "gateways": ["172.20.0.1/16"], "addresses": ["172.20.0.2"], "names": ["n1", "centos-1"], "domain": "testnet",
            "ttl": 5, "forward": true}"#,
        r#"{"network": "testnet", "containerID": "fa5a06abf4c2c0ffee", "ifname": "eth0", "joined": 2, "bridge": "br0",
            "gateways": ["172.20.0.1/16"], "addresses": ["172.20.0.3", "fd20::3"], "names": ["n2"], "domain": "dns.podman",
            "otherDomains": ["testnet"], "links": [{"target": "n1", "alias": "lnk"}], "ttl": 5, "forward": true,
            "upstreams": ["9.9.9.9:53"]}"#,
    ] {
        store.write(&serde_json::from_str(text).unwrap()).unwrap();
    }
    state
}

fn parsed(line: &str) -> Result<CommandLine, String> {
    let arguments = line.split_whitespace().map(OsString::from).collect();
    AliasDns::<ThisHost>::read(arguments).map_err(|error| format!("{error:#}"))
}

fn printed(line: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let Ok(CommandLine::Ask(ask, format)) = parsed(line) else { panic!("{line} asks nothing") };
    let mut out = Vec::new();
    ask.run(&records(&directory), format, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn list_prints_one_line_an_attachment() {
    assert_eq!(
        printed("list"),
        "NETWORK  CONTAINER     IFNAME  ADDRESSES           NAMES        LINKS\n\
         testnet  ad9e1859bf3a  eth0    172.20.0.2          n1,centos-1  -\n\
         testnet  fa5a06abf4c2  eth0    172.20.0.3,fd20::3  n2           lnk=n1\n"
    );
    assert_eq!(printed("list nosuch"), "NETWORK  CONTAINER  IFNAME  ADDRESSES  NAMES  LINKS\n");
    assert_eq!(printed("list ../.."), "NETWORK  CONTAINER  IFNAME  ADDRESSES  NAMES  LINKS\n");
    let json: Value = serde_json::from_str(&printed("list testnet --json")).unwrap();
    assert_eq!(json[1]["containerID"], "fa5a06abf4c2c0ffee");
}

#[test]
fn whoever_asks_for_the_names_of_a_network_without_any_is_told_which_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let records = Store::new(&records(&directory)).load().records;
    let [other, none] = [&records[..], &[]].map(|records| no_names("tesnet", records));
    assert_eq!(other, "no container has names on network \"tesnet\"; there are: testnet");
    assert_eq!(none, "no container has names on network \"tesnet\", or on any other one");
}

#[test]
fn query_tells_what_and_why_also_without_a_server() {
    assert_eq!(
        printed("query centos-1 --as 172.20.0.3 --type A"),
        "centos-1 A, asked by 172.20.0.3 on br0: 172.20.0.2\n    a name on network testnet\n"
    );
    assert_eq!(
        printed("query lnk --as 172.20.0.3"),
        "lnk A, asked by 172.20.0.3 on br0: 172.20.0.2\n    a link of the asker to n1 on network testnet\n\
         lnk AAAA, asked by 172.20.0.3 on br0: NODATA\n    a link of the asker to n1 on network testnet\n"
    );
    assert_eq!(
        printed("query 172.20.0.3"),
        "3.0.20.172.in-addr.arpa PTR, asked by 172.20.0.1 on br0: n2.dns.podman.\n    \
         an address of container fa5a06abf4c2c0ffee on network testnet\n"
    );
    assert!(
        printed("query example.com --as 172.20.0.2 --type A").contains("FORWARD to the host's name servers")
    );
    assert!(printed("query example.com --as 172.20.0.3 --type A").contains("FORWARD to 9.9.9.9:53"));
    let of_zone = "\n    no container has this name, and it is in a zone of ours\n";
    for (line, told) in [
        ("query testnet --type SOA", "testnet. nobody.invalid. 1 3600 1200 604800 0"),
        ("query DNS.podman --type NS", "DNS.podman."),
        ("query 20.172.in-addr.arpa --type ns", "20.172.in-addr.arpa."),
        ("query testnet --type MX", "NODATA"),
    ] {
        let printed = printed(line);
        assert!(printed.ends_with(&format!(" on br0: {told}{of_zone}")), "{line}: {printed}");
    }
    assert!(printed("query n1 --as 172.20.0.2 --type A --json").contains("\"172.20.0.2\""));
}

#[test]
fn hosts_prints_a_hosts_file() {
    assert_eq!(
        printed("hosts testnet"),
        "172.20.0.2\tn1.testnet n1 centos-1 centos-1.testnet\n\
         172.20.0.3\tn2.dns.podman n2 n2.testnet\n\
         fd20::3\tn2.dns.podman n2 n2.testnet\n"
    );
    let json: Value = serde_json::from_str(&printed("hosts testnet --json")).unwrap();
    assert_eq!(json[0]["address"], "172.20.0.2");
}

#[test]
fn a_part_of_the_records_is_printed_and_counts_as_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let state = records(&directory);
    std::fs::write(state.records().join("testnet/broken:eth0"), "{").unwrap();
    for (line, part) in [
        ("list", "n1,centos-1"),
        ("list testnet --json", "centos-1"),
        ("hosts testnet", "n1.testnet"),
        ("query n1 --as 172.20.0.3 --type A", ": 172.20.0.2"),
    ] {
        let Ok(CommandLine::Ask(ask, format)) = parsed(line) else { panic!("{line} asks nothing") };
        let mut out = Vec::new();
        let error = ask.run(&state, format, &mut out).expect_err(line);
        assert_eq!(error.to_string(), "not all records could be read", "{line}");
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains(part), "{line}: {out}");
    }
}

#[test]
fn a_wrong_command_line_is_told_what_is_wrong() {
    for (line, message) in [
        ("", "a command is missing"),
        ("bogus", "unknown command \"bogus\""),
        ("list a b", "list: unexpected \"b\""),
        ("serve a", "serve: unexpected \"a\""),
        ("serve --as 10.0.0.1", "--as and --type go with query"),
        ("list --as 10.0.0.1", "--as and --type go with query"),
        ("hosts", "hosts: NETWORK is missing"),
        ("query", "query: NAME is missing"),
        ("list --bogus", "invalid option '--bogus'"),
    ] {
        assert_eq!(parsed(line).unwrap_err(), message);
    }
    assert!(parsed("query a --as x").unwrap_err().contains("\"x\""));
    assert_eq!(parsed("query --help"), Ok(CommandLine::Help));
}
