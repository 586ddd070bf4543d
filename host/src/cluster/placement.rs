//! Which partition a key lies in, and which member owns a partition. Pure: whoever knows the same members gets the same
//! answer, on every host and in every version.

/// Partitions that things are placed in, where nobody says otherwise.
pub const PARTITIONS: u64 = 256;

/// The partition of an entity of a tenant, from 0 to below `partitions`, which counts as 1 at least.
pub fn partition(tenant: &str, entity: &str, partitions: u64) -> u64 {
    let hash = fnv1a(fnv1a(fnv1a(FNV_BASIS, tenant.as_bytes()), &[0]), entity.as_bytes());
    mixed(hash) % partitions.max(1)
}

/// The member that owns a partition: the one with the highest weight, and of two equal ones the lesser by name. None
/// where there are no members. The order of the members does not matter. When one goes, its partitions move and no others.
pub fn owner<'a, M: AsRef<str> + ?Sized>(
    members: impl IntoIterator<Item = &'a M>,
    partition: u64,
) -> Option<&'a M> {
    let weight = |member: &M| {
        let named = fnv1a(fnv1a(FNV_BASIS, member.as_ref().as_bytes()), &[0]);
        mixed(fnv1a(named, &partition.to_le_bytes()))
    };
    members
        .into_iter()
        .map(|member| (weight(member), member))
        .max_by(|(a, one), (b, other)| a.cmp(b).then_with(|| other.as_ref().cmp(one.as_ref())))
        .map(|(_, member)| member)
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads every bit over all of them. Without it the last bytes, which are what tells partitions apart, hardly reach
/// the upper bits, and those decide.
fn mixed(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
