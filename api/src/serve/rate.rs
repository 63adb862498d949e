//! Requests a second of one caller: a token bucket for each (GCRA), with a second's worth of burst.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::auth::{Caller, Role};
use super::error::{ApiError, Code};
use super::settings::Settings;

/// Requests a second from one address before anybody is recognised.
const STRANGER_RATE: u32 = 50;

type Limiter = Option<DefaultKeyedRateLimiter<[u8; 16]>>;

/// The limits, by kind of caller.
pub(crate) struct Rates {
    people: Limiter,
    services: Limiter,
    strangers: Limiter,
    clock: DefaultClock,
}

/// What addresses are counted by.
fn network(address: Option<IpAddr>) -> [u8; 16] {
    // A socket for both families gives IPv4 as `::ffff:a.b.c.d`, and those are not one network.
    match address.map(|a| a.to_canonical()) {
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
        // Whoever has one address of a network has all of them.
        Some(IpAddr::V6(v6)) => (u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes(),
        None => [0; 16],
    }
}

fn limiter(per_second: u32) -> Limiter {
    NonZeroU32::new(per_second).map(|n| RateLimiter::keyed(Quota::per_second(n)))
}

impl Rates {
    pub(crate) fn new(settings: &Settings) -> Rates {
        let strangers = if settings.rate_limit == 0 { 0 } else { settings.rate_limit.max(STRANGER_RATE) };
        Rates {
            people: limiter(settings.rate_limit),
            services: limiter(settings.rate_limit_service),
            strangers: limiter(strangers),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of somebody who was recognised.
    pub(crate) fn admit(&self, caller: &Caller) -> Result<(), ApiError> {
        let limiter = if caller.has(Role::Service) { &self.services } else { &self.people };
        let digest = blake3::hash(caller.subject.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        self.check(limiter, &key)
    }

    /// Counts a request of nobody in particular.
    pub(crate) fn admit_stranger(&self, address: Option<IpAddr>) -> Result<(), ApiError> {
        self.check(&self.strangers, &network(address))
    }

    /// Counts a request of who may be the payment provider, a service: its webhooks come from few addresses.
    pub(crate) fn admit_provider(&self, address: Option<IpAddr>) -> Result<(), ApiError> {
        self.check(&self.services, &network(address))
    }

    fn check(&self, limiter: &Limiter, key: &[u8; 16]) -> Result<(), ApiError> {
        let Some(limiter) = limiter else { return Ok(()) };
        limiter.check_key(key).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            ApiError::new(Code::RateLimited, "too many requests; slow down").retry_after(seconds.max(1))
        })
    }

    /// Forgets callers who were silent long enough to have their whole burst again. Called now and then, so that the table
    /// holds who is active and nobody else.
    pub(crate) fn forget_the_silent(&self) {
        for limiter in [&self.people, &self.services, &self.strangers].into_iter().flatten() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    /// How often that is worth it.
    pub(crate) const FORGET_EVERY: Duration = Duration::from_secs(10);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(people: u32) -> Rates {
        let (services, strangers) = (limiter(10), limiter(STRANGER_RATE));
        Rates { people: limiter(people), services, strangers, clock: DefaultClock::default() }
    }

    fn caller(n: usize) -> Caller {
        Caller::new(&format!("p-{n}@example.org"), vec![Role::Buyer]).unwrap()
    }

    /// A caller without a name costs memory for as long as it has something to wait for, no longer.
    #[test]
    fn the_table_of_callers_shrinks_again() {
        let rates = rates(50);
        for n in 0..100_000 {
            rates.admit(&caller(n)).unwrap();
        }
        let people = rates.people.as_ref().unwrap();
        assert!(people.len() > 1, "{}", people.len());
        std::thread::sleep(Duration::from_millis(1100));
        rates.forget_the_silent();
        assert_eq!(people.len(), 0);
    }

    #[test]
    fn forgetting_gives_nobody_a_new_burst() {
        let rates = rates(1);
        rates.admit(&caller(0)).unwrap();
        rates.forget_the_silent();
        assert_eq!(rates.admit(&caller(0)).unwrap_err().code, Code::RateLimited);
    }

    #[test]
    fn addresses_are_counted_by_network() {
        let of = |text: &str| network(Some(text.parse().unwrap()));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"), "as a socket for both families gives it");
        assert_ne!(of("::ffff:192.0.2.1"), of("::ffff:192.0.2.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
