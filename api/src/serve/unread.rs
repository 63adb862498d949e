//! Bodies that nobody read to their end, such as that of a request that was refused.
//!
//! What remains of a chunked one, the framework reads and drops for as long as the client sends, if the handler has let go of it.
//! So it is held until the answer is written: then the framework closes the connection.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_web::HttpMessage as _;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures_util::Stream;

/// A body that is lent to a handler.
struct Lent {
    body: Rc<RefCell<Payload>>,
    is_read: Rc<Cell<bool>>,
}

impl Stream for Lent {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut *self.body.borrow_mut()).poll_next(cx));
        if next.is_none() {
            self.is_read.set(true);
        }
        Poll::Ready(next)
    }
}

/// What may be left of a body when its request is answered.
pub(crate) struct Unread {
    _body: Rc<RefCell<Payload>>,
    is_read: Rc<Cell<bool>>,
}

/// Lends a request's body to its handler; `None` if it has none.
pub(crate) fn lend(req: &mut ServiceRequest) -> Option<Unread> {
    let body = req.take_payload();
    if matches!(body, Payload::None) {
        return None;
    }
    let (body, is_read) = (Rc::new(RefCell::new(body)), Rc::new(Cell::new(false)));
    let lent = Lent { body: Rc::clone(&body), is_read: Rc::clone(&is_read) };
    req.set_payload(Payload::Stream { payload: Box::pin(lent) });
    Some(Unread { _body: body, is_read })
}

/// An answer that holds what was not read of its request.
struct Holding {
    answer: BoxBody,
    _unread: Unread,
}

impl MessageBody for Holding {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.answer).poll_next(cx)
    }
}

/// Has the answer hold what is left of the body, if something is.
pub(crate) fn hold(answer: BoxBody, unread: Option<Unread>) -> BoxBody {
    match unread.filter(|unread| !unread.is_read.get()) {
        Some(unread) => BoxBody::new(Holding { answer, _unread: unread }),
        None => answer,
    }
}
