//! Where a request comes from.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::{
    extract::ConnectInfo,
    http::{Extensions, HeaderMap, HeaderName, header::FORWARDED},
};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client: the socket's, or what proxies that are trusted say of it. `None` where the routes are served without axum's
/// `ConnectInfo`.
pub(crate) fn of(extensions: &Extensions, headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let ConnectInfo(peer) = extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(network(behind(peer.ip().to_canonical(), headers, trusted)))
}

/// Walks back along the proxies: each has appended whom it heard from, and only what trusted ones say counts.
fn behind(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut address = peer;
    for said in hops(headers).into_iter().rev() {
        let Some(said) = said.filter(|_| is_trusted(address)) else { break };
        address = said;
    }
    address
}

/// What the headers say, nearest last. `Forwarded` is the standard; where there is none, `X-Forwarded-For`.
fn hops(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let values =
        |name| headers.get_all(name).into_iter().flat_map(|value| value.to_str().unwrap_or_default().split(','));
    if headers.contains_key(FORWARDED) {
        let of = |element: &str| {
            element.split(';').find_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                name.trim().eq_ignore_ascii_case("for").then(|| parse(value.trim().trim_matches('"')))?
            })
        };
        return values(FORWARDED).map(of).collect();
    }
    values(X_FORWARDED_FOR).map(|value| parse(value.trim())).collect()
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Who has one address of IPv6 has a whole network of them, which counts as one.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(peer: &str, name: &'static str, value: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), value.parse().expect("a value"));
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(SocketAddr::new(peer.parse().expect("an address"), 1)));
        of(&extensions, &headers, &trusted).expect("there is a peer").to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        for (peer, value, address) in [
            ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
            // What the client wrote itself stands in front, and is not reached.
            ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),
            ("10.0.0.1", "1.1.1.1, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
            ("10.0.0.1", "198.51.100.1, garbage", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("::ffff:10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
            ("fd00::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(found(peer, "x-forwarded-for", value), address, "{peer} {value}");
        }
        for (value, address) in [
            ("for=198.51.100.1;proto=https, for=10.0.0.3", "198.51.100.1"),
            ("proto=https; For=\"[2001:db8:1:2::3]:80\"", "2001:db8:1:2::"),
            ("for=unknown", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            assert_eq!(found("10.0.0.1", "forwarded", value), address, "{value}");
        }
    }
}
