//! The text of a `resolv.conf` as a result's `dns`, read as the reference reads it. Pure.

use cni_types::Dns;

/// Lines that are empty, comments, or have no value say nothing; keywords that are not ours are passed over.
pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
        let values = std::iter::once(first).chain(words).map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.push(first.to_owned()),
            "domain" => first.clone_into(&mut dns.domain),
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_reference_reads_is_read() {
        let text = "# comment\n; another\n\n  nameserver 192.0.2.0 inline\nnameserver\nnameserver 2001:db8::1\r\n\
                    domain a.example\ndomain b.example\nsearch x.example y.example\nsearch z.example\n\
                    options ndots:2 rotate\noptions edns0\nsortlist 10.0.0.0\n";
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let wanted = Dns {
            nameservers: texts(&["192.0.2.0", "2001:db8::1"]),
            domain: "b.example".into(),
            search: texts(&["x.example", "y.example", "z.example"]),
            options: texts(&["ndots:2", "rotate", "edns0"]),
        };
        assert_eq!(parse(text), wanted);
        assert!(parse("").is_empty());
    }
}
