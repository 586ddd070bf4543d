//! Which hosts a plugin's requests may go to: the operator's list `http_hosts`, and what lies inside.

use std::net::{IpAddr, Ipv6Addr};

use hyper::Uri;

/// One entry of `http_hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPattern {
    /// In lower case, without a dot at its end; behind `*.` where `below` says so.
    host: String,
    /// It stands for the names below `host`, and not for `host` itself.
    below: bool,
    /// None is the scheme's own port.
    port: Option<u16>,
}

/// The operator's list.
#[derive(Debug)]
pub(super) struct Hosts(Vec<HostPattern>);

/// Where a request may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// By TLS.
    pub(super) secured: bool,
    /// The list has this very host, so wherever it is, it is meant.
    pub(super) named: bool,
}

impl HostPattern {
    /// `api.example.com`, `api.example.com:8443`, `*.example.org`, `10.0.0.7`, `[::1]:8080`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no host: {why}"));
        if text.contains("//") || text.contains(['/', '@', '?', '#']) {
            return wrong("write the name alone, such as api.example.com or api.example.com:8443");
        }
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let Ok(authority) = rest.parse::<hyper::http::uri::Authority>() else {
            return wrong("it has other letters than a name or an address has");
        };
        let port = match (authority.port_u16(), authority.as_str().len() > authority.host().len()) {
            (None, true) => return wrong("its port is no number"),
            (Some(0), _) => return wrong("there is no port 0"),
            (port, _) => port,
        };
        let host = plain(authority.host());
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let name = host.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
        match (address, name) {
            (true, _) if below => wrong("there is nothing below an address"),
            (false, false) => wrong("a `*` stands only at its beginning, as in *.example.org"),
            (false, true) if below && !host.contains('.') => wrong("it would be half of the world"),
            _ => Ok(Self { host, below, port }),
        }
    }

    fn fits(&self, host: &str, port: u16, usual: u16) -> bool {
        let named = match self.below {
            false => host == self.host,
            true => host
                .strip_suffix(self.host.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        };
        named && port == self.port.unwrap_or(usual)
    }
}

impl Hosts {
    pub(super) fn new(patterns: Vec<HostPattern>) -> Self {
        Self(patterns)
    }

    /// The list, asked for one request. An address has to stand in it as the guest writes it.
    pub(super) fn target(&self, uri: &Uri) -> Option<Target> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let secured = uri.scheme_str() == Some("https");
        let usual = if secured { 443 } else { 80 };
        let (host, port) = (plain(authority.host()), authority.port_u16().unwrap_or(usual));
        let fitting = || self.0.iter().filter(|pattern| pattern.fits(&host, port, usual));
        fitting().next()?;
        let named = fitting().any(|pattern| !pattern.below);
        Some(Target { host, port, secured, named })
    }
}

/// A name as it is compared: names are the same in capitals, and with a dot at their end.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether an address is this machine's, of a private network, or of nobody.
pub(super) fn inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                // Shared by a provider's customers, and tests between networks.
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
        }
        IpAddr::V6(v6) => match carried(v6) {
            Some(v4) => inside(v4),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
            }
        },
    }
}

/// The IPv4 address inside of an IPv6 one, in the ways in which one is translated to it.
fn carried(v6: Ipv6Addr) -> Option<IpAddr> {
    let words = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::from([a, b, c, d]))
    };
    match words {
        _ if v6.is_loopback() || v6.is_unspecified() => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(hosts: &[&str]) -> Hosts {
        Hosts::new(hosts.iter().map(|text| HostPattern::parse(text).expect("a host")).collect())
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_that_looks_like_it() {
        let list =
            listed(&["api.example.com", "Other.Example.com:8443", "*.example.org", "[::1]:8080", "10.0.0.7"]);
        let target = |uri: &str| list.target(&uri.parse().expect("an address"));
        for allowed in [
            "http://api.example.com/",
            "http://API.example.com.:80/x",
            "https://api.example.com:443/",
            "http://other.example.com:8443/",
            "http://a.example.org/",
            "http://a.b.example.org/",
            "http://[::1]:8080/",
            "http://10.0.0.7/",
        ] {
            assert!(target(allowed).is_some(), "{allowed}");
        }
        for refused in [
            "http://api.example.com:8080/",
            "http://other.example.com/",
            "http://api.example.com.evil.net/",
            "http://evilapi.example.com/",
            "http://example.org/",
            "http://notexample.org/",
            "http://.example.org/",
            "http://api.example.com@evil.net/",
            "http://api.example.com:80@evil.net/",
            "http://user@api.example.com/",
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://10.0.0.70/",
            "http://167772167/",
        ] {
            let uri = refused.parse::<Uri>();
            assert!(uri.is_err() || target(refused).is_none(), "{refused}");
        }
        assert!(target("http://api.example.com/").is_some_and(|target| target.named));
        assert!(target("http://a.example.org/").is_some_and(|target| !target.named));
    }

    #[test]
    fn what_is_no_host_is_not_taken_for_one() {
        for text in [
            "",
            "*",
            "*.",
            "*.com",
            "a.*.org",
            "http://a.org",
            "a.org/x",
            "a.org:",
            "a.org:x",
            "a.org:0",
            "a.org:70000",
            "u@a.org",
            "a..org",
            ".a.org",
            "a b",
            "*.10.0.0.7",
            "*.[::1]",
            "[::1",
            "a,b",
        ] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_of_private_networks_are_known_in_every_dress() {
        for inner in [
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(inside(inner.parse().expect("an address")), "{inner}");
        }
        for outer in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            assert!(!inside(outer.parse().expect("an address")), "{outer}");
        }
    }
}
