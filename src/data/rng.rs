//! Counter-based random numbers: the n-th draw is a pure function of (seed, purpose, a, b, n), so nothing random
//! depends on a micro-batch, a thread or what was drawn before. Statistics only, not for secrets.

/// Step of the counter: 2⁶⁴ over the golden ratio, odd (Steele et al., "Fast splittable pseudorandom number
/// generators", 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One stream of draws.
#[derive(Debug, Clone)]
pub struct Rng {
    key: u64,
    drawn: u64,
}

/// The finaliser of `SplitMix64`: a bijection in which every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// FNV-1a of a purpose's name.
fn name(purpose: &str) -> u64 {
    purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Rng {
    /// The stream for a purpose (`"shuffle"`, `"dropout"`, a tensor's name) at a place (epoch, step, row, ...).
    pub fn new(seed: u64, purpose: &str, a: u64, b: u64) -> Self {
        let key = [name(purpose), a, b].into_iter().fold(mix(seed.wrapping_add(STEP)), |key, part| {
            mix(key.wrapping_mul(STEP) ^ mix(part.wrapping_add(STEP)))
        });
        Self { key, drawn: 0 }
    }

    /// The n-th number of the stream, whatever was drawn so far.
    pub fn at(&self, n: u64) -> u64 {
        mix(self.key.wrapping_add(n.wrapping_add(1).wrapping_mul(STEP)))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        let value = self.at(self.drawn);
        self.drawn = self.drawn.wrapping_add(1);
        value
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform_f64(&mut self) -> f64 {
        unit_f64(self.next_u64())
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform_f32(&mut self) -> f32 {
        unit_f32(self.next_u64())
    }

    /// Uniform in 0..n without bias; 0 for n = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n < 2 {
            return 0;
        }
        // Lemire's method: the low half tells whether the draw fell into the part that would bias the result.
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            let (high, low) = ((wide >> 64) as u64, wide & u128::from(u64::MAX));
            if low >= u128::from(threshold) {
                return high;
            }
        }
    }

    /// Normal with mean 0 and variance 1 (Box–Muller, the cosine half).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform_f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform_f64()).cos()
    }

    /// Every order equally likely (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).unwrap_or(last));
        }
    }
}

/// The top 53 bits of a draw as a number in [0, 1).
pub fn unit_f64(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1u64 << 53) as f64
}

/// The top 24 bits of a draw as a number in [0, 1).
pub fn unit_f32(draw: u64) -> f32 {
    (draw >> 40) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_its_place_alone() {
        let mut forward = Rng::new(42, "dropout", 3, 9);
        let drawn: Vec<u64> = (0..5).map(|_| forward.next_u64()).collect();
        let anew = Rng::new(42, "dropout", 3, 9);
        assert_eq!(drawn[4], anew.at(4));
        for (seed, purpose, a, b) in
            [(43, "dropout", 3, 9), (42, "shuffle", 3, 9), (42, "dropout", 9, 3), (42, "dropout", 3, 10)]
        {
            assert_ne!(Rng::new(seed, purpose, a, b).at(0), anew.at(0));
        }
    }

    #[test]
    fn the_stream_never_changes_between_builds() {
        // Runs are resumed by later builds: these numbers are part of the format.
        let mut rng = Rng::new(42, "shuffle", 0, 0);
        assert_eq!([rng.next_u64(), rng.next_u64()], [STREAM_42_0, STREAM_42_1]);
    }
    const STREAM_42_0: u64 = 2_077_852_855_067_248_647;
    const STREAM_42_1: u64 = 10_662_308_409_062_402_929;

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut rng = Rng::new(1, "moments", 0, 0);
        let n = 200_000;
        let (mut sum, mut square, mut uniform) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            sum += x;
            square += x * x;
            let u = rng.uniform_f32();
            assert!((0.0..1.0).contains(&u));
            uniform += f64::from(u);
        }
        let n = f64::from(n);
        assert!((sum / n).abs() < 0.01, "{}", sum / n);
        assert!((square / n - 1.0).abs() < 0.02, "{}", square / n);
        assert!((uniform / n - 0.5).abs() < 0.005, "{}", uniform / n);
    }

    #[test]
    fn below_reaches_every_value_about_equally_often() {
        let mut rng = Rng::new(7, "below", 0, 0);
        let mut seen = [0u32; 7];
        for _ in 0..70_000 {
            seen[usize::try_from(rng.below(7)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&n| n.abs_diff(10_000) < 500), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_repeats_itself() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            Rng::new(seed, "shuffle", 0, 0).shuffle(&mut items);
            items
        };
        let mut sorted = shuffled(1);
        assert_eq!(sorted, shuffled(1));
        assert_ne!(sorted, shuffled(2));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
