//! The hash behind every random number that is a function of its place.

/// The output function of `SplitMix64` (Steele, Lea & Flood, 2014): a bijection in which every bit reaches every other.
#[inline]
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_published_generator() {
        // The first numbers of SplitMix64 from the seed 1234567, whose state grows by the golden ratio.
        let state = |i: u64| 1_234_567_u64.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let first: Vec<u64> = (0..3).map(|i| super::mix(state(i))).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
