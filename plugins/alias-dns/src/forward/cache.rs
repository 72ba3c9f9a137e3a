//! Replies that may be given again, until their time is over. It is small: its use is to spare the upstream servers the
//! same question from many containers, not to replace a resolver.
//!
//! Its time is that since the host was booted: replies grow old while the host is suspended, too.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::reply::Reply;

/// Octets that the cache holds at most.
const CAPACITY: usize = 512 << 10;

/// The longest that a reply is kept, whatever it says itself: a day-old answer surprises whoever changed it.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long a failure is kept: as short as allowed (RFC 9520, section 3.2), so that a server is missed no longer than it
/// is away.
const OF_FAILURE: Duration = Duration::from_secs(1);

/// Replies by question.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Box<[u8]>, Entry>,
    /// The order of arrival, to drop the oldest when it is full. A key that has been put in again stands in it twice,
    /// and the number tells which place counts.
    order: VecDeque<(Box<[u8]>, u64)>,
    size: usize,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    arrived: Duration,
    lifetime: Duration,
    number: u64,
}

impl Cache {
    /// The reply for `key`, with its age in seconds.
    pub(crate) fn get(&self, key: &[u8], now: Duration) -> Option<(&Reply, u32)> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_sub(entry.arrived);
        (age < entry.lifetime).then_some((&entry.reply, age.as_secs() as u32))
    }

    /// Keeps `reply` as long as it says itself.
    pub(crate) fn put(&mut self, key: &[u8], reply: &Reply, now: Duration) {
        let Some(lifetime) = reply.lifetime() else { return };
        self.keep(key, reply, Duration::from_secs(lifetime.into()).min(LONGEST), now);
    }

    /// Keeps what is said where no server knew: who asks again at once, as resolvers do, would else wait as long again,
    /// and each question take a place.
    pub(crate) fn put_failure(&mut self, key: &[u8], reply: &Reply, now: Duration) {
        self.keep(key, reply, OF_FAILURE, now);
    }

    fn keep(&mut self, key: &[u8], reply: &Reply, lifetime: Duration, now: Duration) {
        self.remove(key);
        let number = self.next;
        self.next += 1;
        self.size += cost(key, reply);
        let entry = Entry { reply: reply.clone(), arrived: now, lifetime, number };
        self.entries.insert(key.into(), entry);
        self.order.push_back((key.into(), number));
        while self.size > CAPACITY {
            let Some((oldest, number)) = self.order.pop_front() else { return };
            if self.entries.get(&oldest).is_some_and(|entry| entry.number == number) {
                self.remove(&oldest);
            }
        }
        // Places that no longer count would else pile up when the same few questions come again and again.
        if self.order.len() > 2 * self.entries.len() + 16 {
            let entries = &self.entries;
            self.order.retain(|(key, number)| entries.get(key).is_some_and(|entry| entry.number == *number));
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    /// Replies held.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.size -= cost(key, &entry.reply);
        }
    }
}

fn cost(key: &[u8], reply: &Reply) -> usize {
    // The key stands in both collections.
    2 * key.len() + size_of::<Entry>() + size_of::<(Box<[u8]>, u64)>() + reply.size()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(ttl: u32, data: usize) -> Reply {
        let mut octets = vec![0, 1, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1];
        octets.extend([0, 0, 1, 0, 1]);
        octets.extend(ttl.to_be_bytes());
        octets.extend((data as u16).to_be_bytes());
        octets.resize(octets.len() + data, 0);
        Reply::read(&octets, 1, &[0, 0, 1, 0, 1]).unwrap()
    }

    #[test]
    fn a_reply_is_given_with_its_age_until_its_time_is_over() {
        let (mut cache, now) = (Cache::default(), Duration::from_hours(7));
        cache.put(b"a", &reply(30, 4), now);
        assert_eq!(cache.get(b"a", now + Duration::from_secs(29)).unwrap().1, 29);
        assert!(cache.get(b"a", now + Duration::from_secs(30)).is_none());
        cache.put(b"b", &reply(0, 4), now);
        assert!(cache.get(b"b", now).is_none());
        cache.put(b"c", &reply(1_000_000, 4), now);
        assert!(cache.get(b"c", now + LONGEST).is_none());
    }

    #[test]
    fn a_failure_is_kept_for_a_second() {
        let (mut cache, now) = (Cache::default(), Duration::from_hours(7));
        let failure = Reply::failure(&[0, 0, 1, 0, 1]);
        cache.put(b"a", &failure, now);
        assert!(cache.get(b"a", now).is_none());
        cache.put_failure(b"a", &failure, now);
        assert!(cache.get(b"a", now + OF_FAILURE - Duration::from_nanos(1)).is_some());
        assert!(cache.get(b"a", now + OF_FAILURE).is_none());
        cache.put(b"a", &reply(30, 4), now);
        assert!(cache.get(b"a", now + OF_FAILURE).is_some());
    }

    #[test]
    fn what_comes_again_is_as_young_as_it_came_last() {
        let (mut cache, now) = (Cache::default(), Duration::from_hours(7));
        for key in [b"a", b"b", b"a"] {
            cache.put(key, &reply(30, 1000), now);
        }
        for number in 0..2000_u32 {
            if cache.get(b"b", now).is_none() {
                break;
            }
            cache.put(&number.to_be_bytes(), &reply(30, 1000), now);
        }
        assert!(cache.get(b"a", now).is_some() && cache.get(b"b", now).is_none());
    }

    #[test]
    fn it_is_bounded_and_the_oldest_go_first() {
        let (mut cache, now) = (Cache::default(), Duration::from_hours(7));
        for number in 0..2000_u32 {
            cache.put(&number.to_be_bytes(), &reply(30, 1000), now);
            assert!(cache.size <= CAPACITY);
        }
        assert!(cache.get(&1999_u32.to_be_bytes(), now).is_some());
        assert!(cache.get(&0_u32.to_be_bytes(), now).is_none());
        for _ in 0..1000 {
            cache.put(b"again", &reply(30, 4), now);
        }
        assert!(cache.order.len() < 3 * cache.len() + 32);
        let held: usize = cache.entries.iter().map(|(key, entry)| cost(key, &entry.reply)).sum();
        assert_eq!(cache.size, held);
        cache.clear();
        assert_eq!((cache.len(), cache.size), (0, 0));
    }
}
