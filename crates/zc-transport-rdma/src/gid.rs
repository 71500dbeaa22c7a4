//! Addresses of ports, and which one a connection uses.

use std::net::{IpAddr, Ipv6Addr};

use zc_core::transport::{Unavailable, UriParams};

/// The address of a port: with RoCE an IPv6 address, or an IPv4 address in its clothes.
///
/// ```
/// use zc_transport_rdma::Gid;
///
/// let gid = Gid::from_ip([10, 0, 0, 1].into());
/// assert_eq!(gid.to_string(), "::ffff:10.0.0.1");
/// assert!(!gid.is_link_local());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// That of an address.
    pub fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self(ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => Self(ip.octets()),
        }
    }

    /// The address it is.
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// No address at all.
    pub fn is_unspecified(&self) -> bool {
        self.ip().is_unspecified()
    }

    /// Of no meaning on another link.
    pub fn is_link_local(&self) -> bool {
        match self.ip() {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
    }

    /// Names one port, and no group of them.
    pub(crate) fn is_unicast(&self) -> bool {
        !self.is_unspecified() && !self.ip().is_multicast()
    }
}

impl std::fmt::Display for Gid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

impl std::fmt::Debug for Gid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// The protocol that goes with an address.
///
/// ```
/// use zc_transport_rdma::GidKind;
///
/// let passes_routers = |kind| kind == GidKind::RoceV2;
/// assert!(!passes_routers(GidKind::RoceV1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// Right above Ethernet.
    RoceV1,
    /// Over UDP.
    RoceV2,
}

/// An address of a port.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = zc_transport_rdma::Device::all() else { return Ok(()) };
/// for entry in devices[0].open()?.gids()? {
///     println!("port {}, index {}: {} ({:?})", entry.port, entry.index, entry.gid, entry.kind);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GidEntry {
    /// The address.
    pub gid: Gid,
    /// Its place in the port's table.
    pub index: u8,
    /// The port.
    pub port: u8,
    /// The protocol.
    pub kind: GidKind,
}

/// What a URI says of the device and the address: `?dev=rxe0&gid=1`, or `&gid=10.0.0.1`.
///
/// ```
/// use zc_core::transport::UriParams;
/// use zc_transport_rdma::DeviceChoice;
///
/// let params = UriParams::new([("dev".to_owned(), "rxe0".to_owned()), ("gid".to_owned(), "1".to_owned())]);
/// let choice = DeviceChoice::from_params(&params)?;
/// assert_eq!(choice.device.as_deref(), Some("rxe0"));
/// # Ok::<(), zc_core::transport::Unavailable>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceChoice {
    /// The device's name; any, if not given.
    pub device: Option<String>,
    /// The address; the best, if not given.
    pub gid: Option<GidChoice>,
    /// Our address on the control link, which names the network that is meant.
    pub link: Option<IpAddr>,
}

/// An address, named in one of two ways.
///
/// ```
/// use zc_transport_rdma::GidChoice;
///
/// assert_eq!("1".parse(), Ok(GidChoice::Index(1)));
/// assert!("10.0.0.1".parse::<GidChoice>().is_ok() && "x".parse::<GidChoice>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GidChoice {
    /// By its place in the table.
    Index(u8),
    /// By itself.
    Address(Gid),
}

impl std::str::FromStr for GidChoice {
    type Err = Unavailable;

    fn from_str(text: &str) -> Result<Self, Unavailable> {
        if let Ok(index) = text.parse() {
            return Ok(Self::Index(index));
        }
        let ip = text.parse().map_err(|_| Unavailable::Other {
            code: "bad_gid",
            remedy: "give `gid` as an index of the port's table or as an address".to_owned(),
        })?;
        Ok(Self::Address(Gid::from_ip(ip)))
    }
}

impl DeviceChoice {
    /// Those of a URI that this transport understands.
    pub const PARAMS: &'static [&'static str] = &["dev", "gid"];

    /// Reads them.
    ///
    /// # Errors
    /// `gid` is neither an index nor an address.
    pub fn from_params(params: &UriParams) -> Result<Self, Unavailable> {
        let gid = params.value("gid").map(str::parse).transpose()?;
        Ok(Self { device: params.value("dev").map(str::to_owned), gid, link: None })
    }

    /// How good an address is, the lowest best. None for one that is not used.
    fn rank(&self, entry: &GidEntry) -> Option<u8> {
        if !entry.gid.is_unicast() || entry.kind == GidKind::InfiniBand {
            return None;
        }
        match self.gid {
            // Whoever names it knows why.
            Some(GidChoice::Index(index)) => return (entry.index == index).then_some(0),
            Some(GidChoice::Address(gid)) => {
                return (entry.gid == gid).then_some(if entry.kind == GidKind::RoceV2 { 0 } else { 1 });
            }
            None => {}
        }
        let link = self.link.map(|ip| Gid::from_ip(ip.to_canonical()));
        match entry.gid.ip() {
            _ if entry.kind != GidKind::RoceV2 || entry.gid.is_link_local() => None,
            _ if link == Some(entry.gid) => Some(0),
            IpAddr::V4(_) => Some(1),
            IpAddr::V6(_) => Some(2),
        }
    }

    /// The best of the addresses: RoCE v2 with our address on the control link, then with any IPv4 address, then with any
    /// other that is of meaning beyond the link; of those that are even the first.
    ///
    /// # Errors
    /// `NoUsableGid`.
    pub fn choose<T>(
        &self,
        all: impl IntoIterator<Item = (T, GidEntry)>,
    ) -> Result<(T, GidEntry), Unavailable> {
        let ranked = all.into_iter().filter_map(|(of, entry)| Some((self.rank(&entry)?, of, entry)));
        let best = ranked.min_by_key(|(rank, ..)| *rank);
        best.map(|(_, of, entry)| (of, entry)).ok_or(Unavailable::NoUsableGid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u8, address: &str, kind: GidKind) -> GidEntry {
        GidEntry { gid: Gid::from_ip(address.parse().unwrap()), index, port: 1, kind }
    }

    /// The table of a usual port, each address once for each version.
    fn table() -> Vec<GidEntry> {
        use GidKind::{RoceV1, RoceV2};
        vec![
            entry(0, "fe80::1", RoceV2),
            entry(1, "2001:db8::1", RoceV2),
            entry(2, "10.0.0.1", RoceV1),
            entry(3, "10.0.0.1", RoceV2),
            entry(4, "192.168.7.1", RoceV2),
            entry(5, "169.254.3.4", RoceV2),
        ]
    }

    fn chosen(choice: &DeviceChoice, table: &[GidEntry]) -> Result<u8, Unavailable> {
        choice.choose(table.iter().map(|entry| ((), *entry))).map(|((), entry)| entry.index)
    }

    fn linked(ip: &str) -> DeviceChoice {
        DeviceChoice { link: Some(ip.parse().unwrap()), ..DeviceChoice::default() }
    }

    #[test]
    fn the_link_says_which_network_is_meant() {
        let any = DeviceChoice::default();
        assert_eq!(chosen(&any, &table()), Ok(3), "IPv4 first");
        assert_eq!(chosen(&linked("192.168.7.1"), &table()), Ok(4));
        assert_eq!(chosen(&linked("::ffff:192.168.7.1"), &table()), Ok(4), "an IPv4 socket of an IPv6 kind");
        assert_eq!(chosen(&linked("2001:db8::1"), &table()), Ok(1));
        assert_eq!(chosen(&linked("172.16.0.9"), &table()), Ok(3), "an address that no port has");
        assert_eq!(chosen(&any, &table()[..2]), Ok(1));
    }

    #[test]
    fn link_local_addresses_are_not_chosen_and_may_be_named() {
        for ip in ["fe80::1", "169.254.3.4"] {
            let table: Vec<_> = table().into_iter().filter(|entry| entry.gid.is_link_local()).collect();
            assert_eq!(chosen(&linked(ip), &table), Err(Unavailable::NoUsableGid), "{ip}");
        }
        let named = |gid: &str| DeviceChoice { gid: Some(gid.parse().unwrap()), ..DeviceChoice::default() };
        assert_eq!(chosen(&named("0"), &table()), Ok(0));
        assert_eq!(chosen(&named("fe80::1"), &table()), Ok(0));
        assert_eq!(chosen(&named("10.0.0.1"), &table()), Ok(3), "version 2 before version 1");
        assert_eq!(chosen(&named("2"), &table()), Ok(2), "version 1, if it is named");
        assert_eq!(chosen(&named("9"), &table()), Err(Unavailable::NoUsableGid));
        let infiniband = [entry(0, "2001:db8::1", GidKind::InfiniBand)];
        assert_eq!(chosen(&named("0"), &infiniband), Err(Unavailable::NoUsableGid));
        assert_eq!(chosen(&named("0"), &[entry(0, "::", GidKind::RoceV2)]), Err(Unavailable::NoUsableGid));
    }

    #[test]
    fn a_uri_names_device_and_address() {
        let params = |gid: &str| UriParams::new([("gid".to_owned(), gid.to_owned())]);
        let gid = |text: &str| DeviceChoice::from_params(&params(text)).map(|choice| choice.gid);
        assert_eq!(gid("255"), Ok(Some(GidChoice::Index(255))));
        assert_eq!(gid("fe80::1"), Ok(Some(GidChoice::Address(Gid::from_ip("fe80::1".parse().unwrap())))));
        for bad in ["256", "-1", "", "eth0"] {
            assert_eq!(gid(bad).map_err(|why| why.code()), Err("bad_gid"), "{bad}");
        }
        assert_eq!(DeviceChoice::from_params(&UriParams::default()), Ok(DeviceChoice::default()));
    }
}
