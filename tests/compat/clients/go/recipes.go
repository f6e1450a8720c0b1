// Sessions, locks, elections and watches of etcd's own client, while the server is killed and comes back.
//
// Contenders take a lock in turn, each counting one up under it; another two campaign for an office. A
// watch from the first revision on must see every number once, in order, whatever happened meanwhile.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const counter, office = "recipes/counter", "recipes/office"

type recipes struct {
	client   *clientv3.Client
	stopped  atomic.Bool
	counted  atomic.Int64
	terms    atomic.Int64
	governed atomic.Int64
}

// attempt runs one recipe with a session of its own; a restart may make any of its steps fail.
func (r *recipes) attempt(recipe func(ctx context.Context, s *concurrency.Session) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	session, err := concurrency.NewSession(r.client, concurrency.WithTTL(2), concurrency.WithContext(ctx))
	if err != nil {
		return
	}
	defer session.Close()
	_ = recipe(ctx, session)
}

// count adds one to the counter, if the lock is still held when the server decides that.
func (r *recipes) count(ctx context.Context, s *concurrency.Session) error {
	mutex := concurrency.NewMutex(s, "recipes/lock")
	if err := mutex.Lock(ctx); err != nil {
		return err
	}
	defer mutex.Unlock(context.WithoutCancel(ctx))
	for i := 0; i < 3; i++ {
		now, err := r.client.Get(ctx, counter)
		if err != nil {
			return err
		}
		number, same := int64(0), clientv3.Compare(clientv3.Version(counter), "=", 0)
		if len(now.Kvs) == 1 {
			number, err = strconv.ParseInt(string(now.Kvs[0].Value), 10, 64)
			must(err)
			same = clientv3.Compare(clientv3.ModRevision(counter), "=", now.Kvs[0].ModRevision)
		}
		next := strconv.FormatInt(number+1, 10)
		done, err := r.client.Txn(ctx).If(mutex.IsOwner()).Then(
			clientv3.OpTxn([]clientv3.Cmp{same}, []clientv3.Op{clientv3.OpPut(counter, next)}, nil)).Commit()
		if err != nil {
			return err
		}
		if !done.Succeeded {
			return nil
		}
		want(done.Responses[0].GetResponseTxn().Succeeded, "the lock's owner was overtaken at", next)
		r.counted.Add(1)
	}
	return nil
}

// govern wins the election, speaks, and resigns. Two at once would be seen by each.
func (r *recipes) govern(ctx context.Context, s *concurrency.Session) error {
	election := concurrency.NewElection(s, office)
	if err := election.Campaign(ctx, "candidate"); err != nil {
		return err
	}
	leader, err := election.Leader(ctx)
	if err == nil && string(leader.Kvs[0].Key) == election.Key() {
		r.governed.Add(1)
		err = election.Proclaim(ctx, "leader")
	}
	r.terms.Add(1)
	_ = election.Resign(context.WithoutCancel(ctx))
	return err
}

// follow sees each number once and in order; it ends once it saw `last`.
func (r *recipes) follow(last <-chan int64, done chan<- struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen, end := int64(0), int64(-1)
	events := r.client.Watch(ctx, counter, clientv3.WithRev(1), clientv3.WithPrevKV())
	for end < 0 || seen < end {
		select {
		case end = <-last:
		case response, open := <-events:
			want(open && response.Err() == nil, "the watch ended", response.Err())
			for _, event := range response.Events {
				want(string(event.Kv.Value) == strconv.FormatInt(seen+1, 10), "watched after", []any{seen, event})
				want(event.IsCreate() == (seen == 0) && (event.PrevKv == nil) == event.IsCreate(), "fields", event)
				seen++
			}
		case <-time.After(30 * time.Second):
			want(false, "the watch is told nothing after", seen)
		}
	}
	close(done)
}

// queue returns once so many hold the lock or wait for it.
func queue(ctx context.Context, c *clientv3.Client, count int64) {
	for {
		there, err := c.Get(ctx, "lapse/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		must(err)
		if there.Count == count {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// lapse waits for a lock until its lease has run out: it must not get it then (etcd's #11456), and
// what it would write as the owner must be refused.
func lapse(c *clientv3.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	holds, err := concurrency.NewSession(c, concurrency.WithTTL(60))
	must(err)
	defer holds.Close()
	waits, err := concurrency.NewSession(c, concurrency.WithTTL(2))
	must(err)
	first, second := concurrency.NewMutex(holds, "lapse"), concurrency.NewMutex(waits, "lapse")
	must(first.Lock(ctx))
	got := make(chan error, 1)
	go func() { got <- second.Lock(ctx) }()
	queue(ctx, c, 2)
	waits.Orphan()
	queue(ctx, c, 1)
	must(first.Unlock(ctx))
	err = <-got
	want(errors.Is(err, concurrency.ErrSessionExpired), "a lock without its lease", err)
	fenced, err := c.Txn(ctx).If(second.IsOwner()).Then(clientv3.OpPut("lapsed", "1")).Commit()
	must(err)
	want(!fenced.Succeeded, "written without the lock", fenced)
	must(first.Lock(ctx))
	must(first.Unlock(ctx))
}

func (r *recipes) run() {
	lapse(r.client)
	var wait sync.WaitGroup
	for _, recipe := range []func(context.Context, *concurrency.Session) error{r.count, r.count, r.count, r.govern, r.govern} {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for !r.stopped.Load() {
				r.attempt(recipe)
			}
		}()
	}
	last, done := make(chan int64), make(chan struct{})
	go r.follow(last, done)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	r.stopped.Store(true)
	wait.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	end, err := r.client.Get(ctx, counter)
	must(err)
	want(len(end.Kvs) == 1, "counter", end)
	number, err := strconv.ParseInt(string(end.Kvs[0].Value), 10, 64)
	must(err)
	want(number >= r.counted.Load() && r.counted.Load() > 0, "counted, but there is", []int64{r.counted.Load(), number})
	want(r.governed.Load() > 0, "terms without a leader", r.terms.Load())
	last <- number
	<-done
	fmt.Println("ok")
}
