//! A queue between two threads that holds so many bytes, whether they are many small things or few large ones.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

struct Queue<T> {
    /// Each with its weight.
    items: VecDeque<(usize, T)>,
    weight: usize,
    /// One of the two ends is gone.
    closed: bool,
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    weight_max: usize,
    /// An item came, one was taken, or an end went.
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'q>(&self, queue: MutexGuard<'q, Queue<T>>) -> MutexGuard<'q, Queue<T>> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// The end that items are put into.
pub(crate) struct Sender<T>(Arc<Shared<T>>);
/// The end that items are taken from.
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// A queue whose items weigh `weight_max` bytes together at most, or one item that weighs more.
pub(crate) fn channel<T>(weight_max: usize) -> (Sender<T>, Receiver<T>) {
    let queue = Mutex::new(Queue { items: VecDeque::new(), weight: 0, closed: false });
    let shared = Arc::new(Shared { queue, weight_max, changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Waits until there is room. `false`: nobody takes items any more.
    pub(crate) fn send(&self, weight: usize, item: T) -> bool {
        let mut queue = self.0.lock();
        while !queue.closed && !queue.items.is_empty() && queue.weight + weight > self.0.weight_max {
            queue = self.0.wait(queue);
        }
        if queue.closed {
            return false;
        }
        queue.weight += weight;
        queue.items.push_back((weight, item));
        self.0.changed.notify_all();
        true
    }
}

impl<T> Receiver<T> {
    /// Waits for the next item. `None`: there is none, and there will be none.
    pub(crate) fn next(&self) -> Option<T> {
        let mut queue = self.0.lock();
        while !queue.closed && queue.items.is_empty() {
            queue = self.0.wait(queue);
        }
        let (weight, item) = queue.items.pop_front()?;
        queue.weight -= weight;
        self.0.changed.notify_all();
        Some(item)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::channel;

    /// Everything comes through in order, whatever it weighs, and what waits never weighs more than it may.
    #[test]
    fn items_come_in_order_and_weigh_no_more_than_they_may() {
        let (sender, receiver) = channel(10);
        let weights = [3, 3, 4, 1, 25, 0, 9, 2, 10, 11];
        let taken: Vec<usize> = std::thread::scope(|scope| {
            scope.spawn(|| {
                let sender = sender;
                for weight in weights {
                    assert!(sender.send(weight, weight));
                }
            });
            let next = || {
                let queue = receiver.0.lock();
                assert!(queue.weight <= 10 || queue.items.len() == 1, "{}", queue.weight);
                drop(queue);
                receiver.next()
            };
            std::iter::from_fn(next).collect()
        });
        assert_eq!(taken, weights);
    }

    /// Who waits for room is told that nobody will make any.
    #[test]
    fn a_sender_that_waits_learns_that_nobody_listens() {
        let (sender, receiver) = channel(1);
        assert!(sender.send(1, ()));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sender.send(1, ()));
            drop(receiver);
            assert!(!waiting.join().unwrap());
        });
        assert!(!sender.send(0, ()));
    }
}
