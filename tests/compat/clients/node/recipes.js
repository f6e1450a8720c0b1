// Locks, elections and watches of the etcd3 package, while the server is killed and comes back.
//
// Contenders take a lock, count one up under it, and give it back; two campaign for an office. A watch from
// the first revision on must see every number once, in order, whatever happened meanwhile.
'use strict';
const assert = require('node:assert');
const { setTimeout: wait } = require('node:timers/promises');
const { Etcd3 } = require('etcd3');
const { Policy } = require('cockatiel');

const COUNTER = 'recipes/counter';
const ATTEMPT_MS = 5000;

class Recipes {
  constructor(endpoint) {
    // Without the breaker: it would keep away from a server that is back already.
    this.client = new Etcd3({ hosts: endpoint, faultHandling: { host: () => Policy.noop, global: Policy.noop } });
    this.stopped = false;
    this.counted = 0;
    this.terms = 0;
    this.seen = 0;
    this.wrong = null;
  }

  // Adds one to the counter under the lock. Any step may fail when the server is killed.
  async count() {
    await this.client.lock('recipes/lock').ttl(2).do(async () => {
      const now = (await this.client.get(COUNTER).exec()).kvs[0];
      const number = now ? Number(now.value.toString()) : 0;
      const done = await this.client
        .if(COUNTER, 'Mod', '==', now ? now.mod_revision : 0)
        .then(this.client.put(COUNTER).value(number + 1))
        .commit();
      if (done.succeeded) this.counted += 1;
    });
  }

  // Wins the election and resigns.
  async govern(name) {
    const campaign = this.client.election('recipes/office', 2).campaign(name);
    const elected = new Promise((resolve) => {
      campaign.on('elected', () => resolve(true));
      campaign.on('error', () => resolve(false));
    });
    if (await Promise.race([elected, wait(ATTEMPT_MS, false)])) this.terms += 1;
    await campaign.resign();
  }

  async again(recipe) {
    while (!this.stopped) {
      await Promise.race([recipe().catch(() => undefined), wait(ATTEMPT_MS)]);
      await wait(5);
    }
  }

  async follow() {
    const watcher = await this.client.watch().key(COUNTER).startRevision('1').create();
    watcher.on('put', (kv) => {
      const number = Number(kv.value.toString());
      if (number !== this.seen + 1) this.wrong = this.wrong || `watched ${number} after ${this.seen}`;
      this.seen = number;
    });
    watcher.on('error', (error) => {
      this.wrong = this.wrong || error;
    });
  }

  async run() {
    await this.follow();
    const told = new Promise((resolve) => process.stdin.once('data', resolve));
    const counters = [1, 2, 3].map(() => this.again(() => this.count()));
    const candidates = ['one', 'two'].map((name) => this.again(() => this.govern(name)));
    await told;
    this.stopped = true;
    await Promise.all([...counters, ...candidates]);
    const last = Number(await patiently(() => this.client.get(COUNTER).string()));
    assert.ok(this.counted > 0 && last >= this.counted, `counted ${this.counted}, there is ${last}`);
    assert.ok(this.terms > 0, 'nobody was elected');
    for (let tries = 0; this.seen < last && tries < 1000; tries += 1) await wait(20);
    assert.strictEqual(this.wrong, null);
    assert.strictEqual(this.seen, last);
  }
}

// After failures in a row the client refuses calls by itself for some seconds.
async function patiently(call) {
  for (let tries = 0; tries < 300; tries += 1) {
    try {
      return await call();
    } catch (error) {
      await wait(50);
    }
  }
  return call();
}

new Recipes(process.argv[2])
  .run()
  .then(() => console.log('ok'))
  .catch((error) => console.log(error))
  .finally(() => process.exit());
