//! What becomes of the packets of a chain that none of its tests picks out but by what is known of them. Pure.

use crate::object::End;

/// Deepest nesting of chains that is followed; the kernel allows no more (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

/// What becomes of the rest, and the rule of the chain at which it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecided {
    /// What becomes of it.
    pub fate: Fate,
    /// The rule that decides, by its number; `None` for the end of the chain.
    pub at: Option<u64>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Whoever called the chain decides.
    GoesOn,
    /// It passes.
    Passes,
    /// It is gone, by a rule of this chain.
    Dropped {
        /// Its name.
        chain: String,
        /// `drop` or `reject`.
        reason: &'static str,
    },
}

impl Fate {
    /// How a base chain with this fate drops, if it does; `policy_drops` says what becomes of what goes on.
    pub fn drops(self, base: &str, policy_drops: bool) -> Option<String> {
        match self {
            Self::Dropped { chain, reason } if chain == base => Some(format!("a rule of it is {reason}")),
            Self::Dropped { chain, reason } => Some(format!("a rule of its chain {chain} is {reason}")),
            Self::GoesOn => policy_drops.then(|| "policy drop".to_owned()),
            Self::Passes => None,
        }
    }
}

/// Follows a packet through `chain`; `ends` says what each rule of a chain does to it, if that is certain. Any other rule
/// is taken for one that it does not concern.
///
/// # Errors
/// Those of `ends`.
pub fn follow<E>(
    chain: &str,
    ends: &mut impl FnMut(&str) -> Result<Vec<(u64, Option<End>)>, E>,
) -> Result<Undecided, E> {
    follow_to(MAX_DEPTH, chain, ends)
}

fn follow_to<E>(
    depth: usize,
    chain: &str,
    ends: &mut impl FnMut(&str) -> Result<Vec<(u64, Option<End>)>, E>,
) -> Result<Undecided, E> {
    let dropped = |reason| Fate::Dropped { chain: chain.to_owned(), reason };
    for (number, end) in ends(chain)? {
        let fate = match end {
            None => continue,
            Some(End::Accept) => Fate::Passes,
            Some(End::Drop) => dropped("drop"),
            Some(End::Reject) => dropped("reject"),
            Some(End::Return) => Fate::GoesOn,
            Some(End::Jump(_) | End::Goto(_)) if depth == 0 => continue,
            Some(End::Goto(target)) => follow_to(depth - 1, &target, ends)?.fate,
            Some(End::Jump(target)) => match follow_to(depth - 1, &target, ends)?.fate {
                Fate::GoesOn => continue,
                decided => decided,
            },
        };
        return Ok(Undecided { fate, at: Some(number) });
    }
    Ok(Undecided { fate: Fate::GoesOn, at: None })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Chains as words: `?` tests something, `>c` jumps to c, `=c` goes to c.
    fn check(chains: &[(&str, &str)], fate: Fate, at: Option<u64>) {
        let mut ends = |name: &str| {
            let words = chains.iter().find(|(chain, _)| *chain == name).map_or("", |(_, words)| words);
            let rules = words.split_whitespace().map(|word| match word.split_at(1) {
                ("?", _) => None,
                (">", target) => Some(End::Jump(target.to_owned())),
                ("=", target) => Some(End::Goto(target.to_owned())),
                ("a", _) => Some(End::Accept),
                ("d", _) => Some(End::Drop),
                ("r", _) => Some(End::Return),
                _ => Some(End::Reject),
            });
            Ok::<_, Infallible>((1..).zip(rules).collect())
        };
        assert_eq!(follow("base", &mut ends), Ok(Undecided { fate, at }), "{chains:?}");
    }

    fn dropped(chain: &str, reason: &'static str) -> Fate {
        Fate::Dropped { chain: chain.to_owned(), reason }
    }

    #[test]
    fn the_first_rule_that_takes_every_packet_decides() {
        check(&[], Fate::GoesOn, None);
        check(&[("base", "? ?")], Fate::GoesOn, None);
        check(&[("base", "? drop ?")], dropped("base", "drop"), Some(2));
        check(&[("base", "? accept drop")], Fate::Passes, Some(2));
        check(&[("base", "return drop")], Fate::GoesOn, Some(1));
    }

    #[test]
    fn chains_are_followed_and_left_again() {
        check(&[("base", "? >users ? X"), ("users", "? return")], dropped("base", "reject"), Some(4));
        check(
            &[("base", "? >users"), ("users", "=last accept"), ("last", "X")],
            dropped("last", "reject"),
            Some(2),
        );
        check(&[("base", "=users drop"), ("users", "?")], Fate::GoesOn, Some(1));
        check(&[("base", ">base")], Fate::GoesOn, None);
    }
}
