use std::{fs, path::Path};

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

/// Gives a fuzz target's body every seed of it (`fuzz/seeds`), and so many inputs that are made of them: the same each time, and shown where the body
/// panics.
pub fn fuzz(target: &str, inputs: usize, body: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    // Folders have no order of their own.
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let made = std::iter::repeat_with(|| mutated(&seeds, &mut random)).take(inputs);
    for input in seeds.iter().cloned().chain(made) {
        let shown = Shown(&input);
        body(&input);
        drop(shown);
    }
}

/// Shows an input while a panic goes past it.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// A seed with some of its bytes changed, lost, said twice, or continued by another seed.
fn mutated(seeds: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = seeds.choose(random).expect("there are seeds").clone();
    for _ in 0..random.random_range(1..6) {
        let end = input.len();
        let from = random.random_range(0..=end);
        let to = random.random_range(from..=end.min(from + 16));
        match random.random_range(0..6) {
            0 => input.insert(from, random.random()),
            1 => drop(input.drain(from..to)),
            2 => drop(input.splice(from..from, input[from..to].to_vec())),
            3 => {
                let other = seeds.choose(random).expect("there are seeds");
                let start = random.random_range(0..=other.len());
                input.truncate(from);
                input.extend_from_slice(&other[start..]);
            }
            _ if from < end => input[from] = random.random(),
            _ => {}
        }
    }
    input
}
