//! A `wasi:cli` command: counts the primes below a number and ends.
//!
//! `job [LIMIT]`; the limit is the first argument, else `$LIMIT`, else 1,000,000. Exit code 2
//! when it is no number.

use std::process::ExitCode;

fn main() -> ExitCode {
    let limit = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("LIMIT").ok())
        .unwrap_or_else(|| "1000000".to_owned());
    let Ok(limit) = limit.parse::<u32>() else {
        eprintln!("read limit {limit:?}: not a number");
        return ExitCode::from(2);
    };
    println!("{} primes below {limit}", primes_below(limit as usize));
    ExitCode::SUCCESS
}

/// The sieve of Eratosthenes.
fn primes_below(limit: usize) -> usize {
    let mut composite = vec![false; limit];
    let mut count = 0;
    for number in 2..limit {
        if composite[number] {
            continue;
        }
        count += 1;
        // The square is past 32 bits for most numbers, and past the limit then.
        if let Some(square) = number.checked_mul(number) {
            for multiple in (square..limit).step_by(number) {
                composite[multiple] = true;
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_known_primes() {
        for (limit, count) in [(0, 0), (2, 0), (3, 1), (10, 4), (1000, 168)] {
            assert_eq!(primes_below(limit), count, "{limit}");
        }
    }
}
