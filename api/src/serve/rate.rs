//! Requests a second of one caller: a token bucket for each (GCRA), with a second's worth of burst.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::auth::{Caller, Role};
use super::error::{ApiError, Code};
use super::settings::Settings;

/// Requests a second from one address before anybody is recognised: failing tokens are guessed at no higher rate.
const STRANGER_RATE: u32 = 50;

type Limiter = Option<DefaultKeyedRateLimiter<[u8; 16]>>;

/// The limits, by kind of caller.
pub(crate) struct Rates {
    people: Limiter,
    services: Limiter,
    strangers: Limiter,
    clock: DefaultClock,
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
        let key = match address {
            Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
            // Whoever has one address of a network has all of them.
            Some(IpAddr::V6(v6)) => (u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes(),
            None => [0; 16],
        };
        self.check(&self.strangers, &key)
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
