//! The view of one watch: the objects that exist now, by key.

use std::collections::BTreeMap;

use inference_api::object::ObjectKey;
use kube::runtime::watcher::Event;

/// Objects of one watch, each reduced to a `V`.
#[derive(Debug)]
pub struct Store<V> {
    live: BTreeMap<ObjectKey, V>,
    /// Objects of a list that is still coming in; `live` counts until it is complete.
    incoming: Option<BTreeMap<ObjectKey, V>>,
    is_listed: bool,
}

// === impl Store ===

impl<V> Default for Store<V> {
    fn default() -> Self {
        Self { live: BTreeMap::new(), incoming: None, is_listed: false }
    }
}

impl<V> Store<V> {
    /// Applies an event; `reduce` gets the object and what was known of it. Returns false if what is known stays the same:
    /// the objects of a list count when it is complete.
    pub fn apply<K>(
        &mut self,
        event: Event<K>,
        key: impl Fn(&K) -> ObjectKey,
        reduce: impl Fn(K, Option<&V>) -> V,
    ) -> bool {
        match event {
            Event::Init => {
                self.incoming = Some(BTreeMap::new());
                return false;
            }
            Event::InitApply(object) => {
                let key = key(&object);
                let value = reduce(object, self.live.get(&key));
                self.incoming.get_or_insert_default().insert(key, value);
                return false;
            }
            Event::InitDone => self.replace(),
            Event::Apply(object) => {
                let key = key(&object);
                let value = reduce(object, self.live.get(&key));
                self.live.insert(key, value);
            }
            Event::Delete(object) => drop(self.live.remove(&key(&object))),
        }
        true
    }

    /// Notes that the API server has no such kind, and so none of its objects. Returns false if that is known.
    pub fn clear(&mut self) -> bool {
        let is_news = !self.is_listed || !self.live.is_empty();
        self.incoming = None;
        self.replace();
        is_news
    }

    /// True once the objects that exist are known.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&V> {
        self.live.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &V)> {
        self.live.iter()
    }

    fn replace(&mut self) {
        self.live = self.incoming.take().unwrap_or_default();
        self.is_listed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_news() {
        let mut store = Store::default();
        let mut apply = |event| {
            let key = |name: &&str| ObjectKey::new("ai", *name);
            store.apply(event, key, |name, _| name)
        };
        assert!(![Event::Init, Event::InitApply("a")].map(&mut apply).contains(&true));
        assert!([Event::InitDone, Event::Apply("a"), Event::Delete("a")].map(&mut apply) == [true; 3]);
        assert!(apply(Event::Apply("b")));
        assert!(store.clear() && !store.clear());
        let mut missing = Store::<&str>::default();
        assert!(missing.clear() && missing.is_listed() && !missing.clear());
    }
}
