package client

import "sync"

// queue hands values over in order, without bound and without ever blocking
// who pushes: what is queued here are rare, small notices, and the reader of
// the bus must not wait for a slow program. One goroutine feeds the channel.
type queue[T any] struct {
	out  chan T
	wake chan struct{} // capacity 1
	stop <-chan struct{}
	drop chan struct{} // closed by discard

	feeding, dropping sync.Once
	mu                sync.Mutex
	waiting           []T
	finished          bool
}

// newQueue starts the feeding goroutine in wg. It ends once everything was
// taken after finish, or at once, dropping what was not taken, when stop is
// closed or after discard. Either way the channel is closed.
func newQueue[T any](wg *sync.WaitGroup, stop <-chan struct{}) *queue[T] {
	q := makeQueue[T](stop)
	q.start(wg)
	return q
}

// makeQueue makes a queue that hands nothing over before start.
func makeQueue[T any](stop <-chan struct{}) *queue[T] {
	return &queue[T]{out: make(chan T), wake: make(chan struct{}, 1), stop: stop, drop: make(chan struct{})}
}

// start starts the feeding goroutine in wg. More than once is fine.
func (q *queue[T]) start(wg *sync.WaitGroup) { q.feeding.Do(func() { wg.Go(q.feed) }) }

// startClosed closes the channel of a queue that was not started.
func (q *queue[T]) startClosed() { q.feeding.Do(func() { close(q.out) }) }

// discard is for who takes nothing any more. More than once is fine.
func (q *queue[T]) discard() { q.dropping.Do(func() { close(q.drop) }) }

// push appends v. After finish it does nothing.
func (q *queue[T]) push(v T) {
	q.mu.Lock()
	if !q.finished {
		q.waiting = append(q.waiting, v)
	}
	q.mu.Unlock()
	q.kick()
}

// finish says that nothing more will come. More than once is fine.
func (q *queue[T]) finish() {
	q.mu.Lock()
	q.finished = true
	q.mu.Unlock()
	q.kick()
}

func (q *queue[T]) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue[T]) feed() {
	defer close(q.out)
	for {
		batch, finished := q.take()
		for _, v := range batch {
			select {
			case q.out <- v:
			case <-q.stop:
				return
			case <-q.drop:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		if finished {
			return
		}
		select {
		case <-q.wake:
		case <-q.stop:
			return
		case <-q.drop:
			return
		}
	}
}

func (q *queue[T]) take() (batch []T, finished bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, q.waiting = q.waiting, nil
	return batch, q.finished
}
