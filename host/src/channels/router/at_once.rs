//! Appends to stores that need no waiting: nothing is boxed, queued or woken for them but who follows.

use futures_util::FutureExt as _;
use futures_util::future::ready;

use super::{Begun, Result, Router, waits_for};
use crate::channels::AppendedAtOnce;
use crate::channels::counts;
use crate::channels::entry::NewEntry;
use crate::channels::error::ChannelError;
use crate::channels::names::ChannelId;
use crate::channels::record::Head;
use crate::channels::rules::{Append, check_entries, may_append};

/// What came of an append to a store that may need no waiting.
pub(crate) enum AtOnce {
    /// Whoever asked counts it.
    Answered(Result<AppendedAtOnce>),
    /// It waits for its forerunners.
    Begun(Begun),
    /// Nothing was done: the store waits. It is appended as others are.
    Later(Append),
}

impl Router {
    /// Appends as [`append_all`](Self::append_all) does, as far as that needs no waiting.
    pub(crate) fn append_at_once(&self, id: &ChannelId, mut append: Append) -> AtOnce {
        let Some(store) = self.inner.store.prompt().filter(|_| !append.entries.is_empty()) else {
            return AtOnce::Later(append);
        };
        let limits = &self.inner.limits;
        let slow_enough = || match limits.rate_limited {
            true => self.counted(self.inner.limiters.ask(&id.process, &append.who, limits)),
            false => Ok(()),
        };
        // Whoever is too fast holds up nobody at the store.
        if let Err(refused) = check_entries(&append.entries, limits).and_then(|()| slow_enough()) {
            return AtOnce::Answered(Err(refused));
        }
        let (who, asked, entries) = (append.who.clone(), append.epoch, append.entries.len());
        let mut admitted = None;
        let mut admit = |head: &Head| {
            let epoch = may_append(head, &who, asked)?;
            if limits.rate_limited {
                self.counted(self.inner.limiters.take(&id.process, &who, entries, limits))?;
            }
            admitted = Some((head.clone(), epoch));
            Ok(())
        };
        let done = store.append_at_once(id, &mut append, &mut admit);
        if let (Err(ChannelError::Gap { expected, sequence, .. }), Some((head, epoch))) = (&done, admitted)
            && let Some(until) = waits_for(&head, &append, *expected, *sequence)
        {
            append.epoch = Some(epoch);
            return self.hold(id, append, (head, epoch), until);
        }
        AtOnce::Answered(done)
    }

    fn hold(&self, id: &ChannelId, append: Append, (head, epoch): (Head, u32), until: u64) -> AtOnce {
        let sizes: Vec<usize> = append.entries.iter().map(NewEntry::bytes).collect();
        let (router, id) = (self.clone(), id.clone());
        let rest = async move {
            let live = router.inner.store.tails().attach(&id);
            router.held(&live, &head, append, epoch, until).await
        };
        let mut rest = rest.inspect(move |answer| counts::answered(&sizes, answer)).boxed();
        // With this it has its place among those that wait. Whoever waits for it asks it again.
        AtOnce::Begun(match (&mut rest).now_or_never() {
            Some(answered) => ready(answered).boxed(),
            None => rest,
        })
    }
}
