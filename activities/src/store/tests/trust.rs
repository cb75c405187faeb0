//! Trust rules: each belongs to its project, and no project has too many.

use super::super::Store;

pub async fn check(store: &Store) {
    let (shop, other) = ("shop".parse().unwrap(), "other".parse().unwrap());
    let first = store.add_trust(&shop, "{}", "operator", 2).await.unwrap().unwrap();
    let second = store.add_trust(&shop, "[]", "operator", 2).await.unwrap().unwrap();
    assert_eq!(store.add_trust(&shop, "{}", "operator", 2).await.unwrap(), None, "one more than it may have");
    let mut kept = vec![first.clone(), second.clone()];
    kept.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    assert_eq!(store.trust(&shop).await.unwrap(), kept);
    assert_eq!(store.trust(&other).await.unwrap(), []);
    assert!(!store.remove_trust(&other, &first.id).await.unwrap(), "another project's");
    assert!(store.remove_trust(&shop, &first.id).await.unwrap());
    assert!(!store.remove_trust(&shop, &first.id).await.unwrap(), "it is gone");
    assert_eq!(store.trust(&shop).await.unwrap(), [second]);
}
