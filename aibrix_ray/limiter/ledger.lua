-- One sync of a gateway, atomically: what limits/ledger.py does, on Redis.
--
-- KEYS[1]: the prefix of every key, in braces, so that a cluster keeps them in one slot.
-- ARGV: the sync as JSON, a random incarnation for the case that there is none, and in seconds
-- after which silence a gateway is dead and after which Redis itself was away.
-- Time is Redis's own, so gateways need not agree on theirs.

local prefix = KEYS[1]
local sync = cjson.decode(ARGV[1])
local reclaim_s, deaf_s = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now_s = tonumber(time[1]) + tonumber(time[2]) / 1e6

local META = prefix .. ':meta'
local SEEN = prefix .. ':seen' -- session -> when it was last heard
local JOINED = prefix .. ':joined' -- session -> when it joined
local TOLD = prefix .. ':told' -- session -> how many gateways it knew of when it joined
local LEASED = prefix .. ':leased' -- cap -> slots that all gateways hold
local function held_by(session)
  return prefix .. ':held:' .. session -- cap -> slots that this gateway holds
end
local function exact(number)
  return string.format('%.17g', number)
end

-- Slots

local function lease(session, key, slots)
  local before = tonumber(redis.call('HGET', held_by(session), key) or 0)
  if slots > 0 then
    redis.call('HSET', held_by(session), key, slots)
  else
    redis.call('HDEL', held_by(session), key)
  end
  if redis.call('HINCRBY', LEASED, key, slots - before) == 0 then
    redis.call('HDEL', LEASED, key)
  end
end

local function drop(session)
  for _, key in ipairs(redis.call('HKEYS', held_by(session))) do
    lease(session, key, 0)
  end
  redis.call('ZREM', SEEN, session)
  redis.call('HDEL', JOINED, session)
  redis.call('HDEL', TOLD, session)
end

-- Sessions

redis.call('HSETNX', META, 'incarnation', ARGV[2])
redis.call('HSETNX', META, 'began_s', exact(now_s))
local heard_s = tonumber(redis.call('HGET', META, 'heard_s') or now_s)
redis.call('HSET', META, 'heard_s', exact(now_s))
if now_s - heard_s > deaf_s then
  -- Nobody was heard: Redis was away, and takes nobody for dead because of it.
  redis.call('HSET', META, 'began_s', exact(now_s))
  for _, session in ipairs(redis.call('ZRANGE', SEEN, 0, -1)) do
    redis.call('ZADD', SEEN, exact(now_s), session)
  end
end
for _, session in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '-inf', exact(now_s - reclaim_s))) do
  drop(session)
end
local incarnation = redis.call('HGET', META, 'incarnation')
if sync.joins then
  if sync.replaces ~= '' then
    drop(sync.replaces)
  end
  drop(sync.session)
  redis.call('HSET', JOINED, sync.session, exact(now_s))
  redis.call('HSET', TOLD, sync.session, sync.gateways)
elseif not redis.call('ZSCORE', SEEN, sync.session) then
  return { incarnation, 0 }
end
redis.call('ZADD', SEEN, exact(now_s), sync.session)

local sessions = redis.call('ZCARD', SEEN)
local expected, old = 0, 0
for _, told in ipairs(redis.call('HVALS', TOLD)) do
  expected = math.max(expected, tonumber(told))
  if tonumber(told) > 0 then
    old = old + 1
  end
end
local settled = redis.call('HEXISTS', META, 'settled') == 1
if not settled then
  local waited = now_s - tonumber(redis.call('HGET', META, 'began_s')) >= reclaim_s
  settled = waited or (expected > 0 and old >= expected)
  if settled then
    redis.call('HSET', META, 'settled', 1)
  end
end
local gateways = sessions
if not settled then
  gateways = math.max(sessions, expected)
end

-- Rates

local granted, levels = {}, {}
for i, ask in ipairs(sync.rates) do
  local key = prefix .. ':rate:' .. ask.key
  local bucket = redis.call('HMGET', key, 'level', 'filled_s', 'limit', 'net')
  local level, net = ask.limit, tonumber(bucket[4] or 0)
  if bucket[1] then
    level = tonumber(bucket[1]) + ask.limit - tonumber(bucket[3])
    level = level + math.max(0, now_s - tonumber(bucket[2])) * ask.limit / 60
    level = math.min(ask.limit, level)
  end
  if ask.level ~= cjson.null then
    -- What an earlier incarnation told does not know of what was told to this one.
    level = math.min(level, ask.level + net)
  end
  level = math.min(ask.limit, level - ask.charge + ask.give_back)
  local room = math.max(0, math.floor(level))
  local given = 0
  if room >= ask.least then
    given = math.min(ask.need, room)
  end
  given = given + math.min(ask.ahead, math.floor((room - given) / (2 * gateways)))
  level, net = level - given, net + ask.give_back - ask.charge - given
  -- A bucket that is full again need not be remembered.
  if level >= ask.limit then
    redis.call('DEL', key)
  else
    redis.call('HSET', key, 'level', exact(level), 'filled_s', exact(now_s))
    redis.call('HSET', key, 'limit', ask.limit, 'net', exact(net))
    redis.call('PEXPIRE', key, math.ceil((ask.limit - level) * 60000 / ask.limit) + 1000)
  end
  granted[i], levels[i] = given, exact(level)
end

-- Whoever may hold slots is known to all, so that all can say how many must tell what they hold,
-- should Redis forget.
local longest = redis.call('ZRANGE', SEEN, 0, 0, 'WITHSCORES')
local joined_s = tonumber(redis.call('HGET', JOINED, sync.session))
local grants = settled and tonumber(longest[2]) >= joined_s
local leases, free = {}, {}
for i, ask in ipairs(sync.slots) do
  local all = tonumber(redis.call('HGET', LEASED, ask.key) or 0)
  local mine = tonumber(redis.call('HGET', held_by(sync.session), ask.key) or 0)
  local room = 0
  if grants then
    room = math.max(0, ask.cap - (all - mine) - ask.hold)
  end
  local given = math.min(ask.need, room)
  given = given + math.min(ask.ahead, math.floor((room - given) / (2 * gateways)))
  lease(sync.session, ask.key, ask.hold + given)
  leases[i], free[i] = ask.hold + given, grants and room - given or -1
end

if sync.leaves then
  drop(sync.session)
end
return { incarnation, 1, gateways, settled and 1 or 0, granted, levels, leases, free }
